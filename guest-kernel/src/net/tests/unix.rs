//! AF_UNIX.

use super::*;
use crate::file::ready::*;
use crate::net::sockaddr::UnixName;

fn pair(kind: u32) -> (i32, i32) {
    let mut fds = [0i32; 2];
    let kind = kind | SOCK_NONBLOCK;
    assert_eq!(
        call(
            53,
            &[AF_UNIX.into(), kind.into(), 0, fds.as_mut_ptr() as u64]
        ),
        Ok(0)
    );
    (fds[0], fds[1])
}

fn unix(kind: u32) -> i32 {
    call(41, &[AF_UNIX.into(), u64::from(kind | SOCK_NONBLOCK), 0]).unwrap() as i32
}

fn bind_name(fd: i32, name: &UnixName) -> SysResult {
    let address = Address::Unix(name.clone()).bytes();
    call(
        49,
        &[fd as u64, address.as_ptr() as u64, address.len() as u64],
    )
}

#[test]
fn a_stream_pair() {
    let _world = World::new();
    let (a, b) = pair(SOCK_STREAM);
    assert_eq!(recv(a), Err(EAGAIN));
    let wakes = Wakes::of(b);
    send(a, b"one").unwrap();
    send(a, b"two").unwrap();
    assert_eq!(wakes.take(), 2);
    assert_eq!(poll(b), IN | RDNORM | OUT | WRNORM | WRBAND);
    assert_eq!(recv_flags(b, 4, MSG_PEEK), Ok(b"onet".to_vec()));
    assert_eq!(recv_flags(b, 4, 0), Ok(b"onet".to_vec()));
    assert_eq!(recv(b), Ok(b"wo".to_vec()));
    assert_eq!(call(48, &[a as u64, SHUT_WR.into()]), Ok(0));
    assert_eq!(recv(b), Ok(vec![]));
    assert_eq!(poll(b), IN | RDNORM | RDHUP | OUT | WRNORM | WRBAND);
    assert_eq!(send(a, b"x"), Err(EPIPE));
    send(b, b"back").unwrap();
    drop(wakes);
    close(b);
    assert_eq!(recv(a), Ok(b"back".to_vec()));
    assert_eq!(recv(a), Ok(vec![]));
    assert_eq!(poll(a) & (HUP | RDHUP | IN), HUP | RDHUP | IN);
}

#[test]
fn closing_with_unread_data_resets() {
    let _world = World::new();
    let (a, b) = pair(SOCK_STREAM);
    send(a, b"unread").unwrap();
    close(b);
    assert_eq!(poll(a) & ERR, ERR);
    assert_eq!(recv(a), Err(ECONNRESET));
    assert_eq!(recv(a), Ok(vec![]));
    assert_eq!(send(a, b"x"), Err(EPIPE));
}

#[test]
fn a_full_stream_blocks_until_it_is_read() {
    let _world = World::new();
    let (a, b) = pair(SOCK_STREAM);
    let data = pattern(1 << 20);
    let mut sent = 0;
    while let Ok(count) = send(a, &data[sent..]) {
        sent += count;
    }
    assert!(sent > 200_000 && sent <= crate::net::unix::UNIX_QUEUE_BYTES);
    assert_eq!(poll(a), 0);
    let wakes = Wakes::of(a);
    let mut got = recv_flags(b, 190_000, 0).unwrap();
    assert_eq!((wakes.take(), poll(a)), (1, OUT | WRNORM | WRBAND));
    got.extend(recv(b).unwrap());
    assert!(got == data[..sent]);
}

#[test]
fn messages_stay_apart() {
    let _world = World::new();
    for kind in [SOCK_DGRAM, SOCK_SEQPACKET] {
        let (a, b) = pair(kind);
        send(a, b"first").unwrap();
        send(a, b"").unwrap();
        send(a, b"second").unwrap();
        assert_eq!(recv_flags(b, 3, 0), Ok(b"fir".to_vec()));
        assert_eq!(recv(b), Ok(vec![]));
        assert_eq!(recv(b), Ok(b"second".to_vec()));
        assert_eq!(recv(b), Err(EAGAIN));
        assert_eq!(send(a, &vec![0; 300_000]), Err(EMSGSIZE));
        let mut count = 0;
        while send(a, &[7; 5000]).is_ok() {
            count += 1;
        }
        assert_eq!(count, crate::net::unix::UNIX_QUEUE_BYTES / 5128);
        assert_eq!(recv(b), Ok(vec![7; 5000]));
        assert_eq!(send(a, &[7; 5000]), Ok(5000));
        close(b);
        let gone = if kind == SOCK_DGRAM {
            ECONNREFUSED
        } else {
            ECONNRESET
        };
        assert_eq!(send(a, b"x"), Err(gone));
    }
}

#[test]
fn listen_connect_accept_by_name() {
    let _world = World::new();
    for name in [
        UnixName::Path(b"/run/s".to_vec()),
        UnixName::Abstract(b"s".to_vec()),
    ] {
        let server = unix(SOCK_STREAM);
        let client = unix(SOCK_STREAM);
        let missing = if matches!(name, UnixName::Path(_)) {
            ENOENT
        } else {
            ECONNREFUSED
        };
        let to = Address::Unix(name.clone());
        assert_eq!(connect(client, &to), Err(missing));
        assert_eq!(call(50, &[server as u64, 1]), Err(EINVAL));
        assert_eq!(bind_name(server, &name), Ok(0));
        assert_eq!(bind_name(unix(SOCK_STREAM), &name), Err(EADDRINUSE));
        assert_eq!(connect(client, &to), Err(ECONNREFUSED));
        assert_eq!(call(50, &[server as u64, 1]), Ok(0));
        assert_eq!(connect(unix(SOCK_DGRAM), &to), Err(EPROTOTYPE));
        let wakes = Wakes::of(server);
        assert_eq!(connect(client, &to), Ok(0));
        assert_eq!((poll(server), wakes.take()), (IN | RDNORM, 1));
        assert_eq!(connect(client, &to), Err(EISCONN));
        assert_eq!(connect(unix(SOCK_STREAM), &to), Ok(0));
        let third = unix(SOCK_STREAM);
        assert_eq!(connect(third, &to), Err(EAGAIN), "the backlog is full");
        send(client, b"early").unwrap();
        let fd = call(43, &[server as u64, 0, 0]).unwrap() as i32;
        assert_eq!(recv(fd), Ok(b"early".to_vec()));
        assert_eq!(name_of(client, 52), Ok(to.clone()));
        assert_eq!(name_of(fd, 51), Ok(to.clone()));
        assert_eq!(name_of(fd, 52), Ok(Address::Unix(UnixName::Unnamed)));
        assert_eq!(connect(third, &to), Ok(0));
        drop(wakes);
        close(server);
        assert_eq!(recv(third), Err(ECONNRESET), "never accepted");
        send(fd, b"still").unwrap();
        assert_eq!(recv(client), Ok(b"still".to_vec()));
        // The name is free again.
        assert_eq!(bind_name(unix(SOCK_STREAM), &name), Ok(0));
    }
}

fn message(data: &[u64; 2], control: &mut [u64]) -> MsgHdr {
    MsgHdr {
        iov: data.as_ptr() as u64,
        iov_len: 1,
        control: control.as_mut_ptr() as u64,
        control_len: (control.len() * 8) as u64,
        ..MsgHdr::default()
    }
}

#[test]
fn open_files_are_passed() {
    let _world = World::new();
    let (a, b) = pair(SOCK_STREAM);
    let (x, y) = pair(SOCK_STREAM);
    let text = *b"fd";
    let data = [text.as_ptr() as u64, 2];
    // cmsghdr: length 20, SOL_SOCKET, SCM_RIGHTS, one descriptor.
    let mut control = [
        20u64,
        u64::from(SCM_RIGHTS) << 32 | u64::from(SOL_SOCKET),
        y as u64,
    ];
    let header = message(&data, &mut control);
    assert_eq!(call(46, &[a as u64, (&raw const header) as u64, 0]), Ok(2));
    send(a, b"plain").unwrap();
    close(y);
    // A read does not run across the message with the file.
    let mut into = [0u8; 100];
    let data = [into.as_mut_ptr() as u64, 100];
    let mut control = [0u64; 8];
    let mut header = message(&data, &mut control);
    assert_eq!(
        call(
            47,
            &[b as u64, (&raw mut header) as u64, MSG_CMSG_CLOEXEC.into()]
        ),
        Ok(2)
    );
    assert_eq!(
        (header.flags & !MSG_CMSG_CLOEXEC, header.control_len),
        (0, 24)
    );
    let fd = control[2] as i32;
    assert!(*file::table().cloexec(fd).unwrap());
    send(x, b"through").unwrap();
    assert_eq!(recv(fd), Ok(b"through".to_vec()));
    // Without room for control data, the file is closed and the program told.
    let mut rights = [
        20u64,
        u64::from(SCM_RIGHTS) << 32 | u64::from(SOL_SOCKET),
        fd as u64,
    ];
    let data_out = [text.as_ptr() as u64, 2];
    let header_out = message(&data_out, &mut rights);
    assert_eq!(
        call(46, &[a as u64, (&raw const header_out) as u64, 0]),
        Ok(2)
    );
    assert_eq!(recv_flags(b, 5, 0), Ok(b"plain".to_vec()));
    let mut header = message(&data, &mut []);
    assert_eq!(call(47, &[b as u64, (&raw mut header) as u64, 0]), Ok(2));
    assert_eq!(header.flags, MSG_CTRUNC);
    close(fd);
    assert_eq!(recv(x), Ok(vec![]), "the last reference is gone");
}

#[test]
fn files_under_way_are_bounded() {
    let _world = World::new();
    let (a, _b) = pair(SOCK_STREAM);
    let text = *b"x";
    let data = [text.as_ptr() as u64, 1];
    let mut control = [
        20u64,
        u64::from(SCM_RIGHTS) << 32 | u64::from(SOL_SOCKET),
        a as u64,
    ];
    let header = message(&data, &mut control);
    let mut count = 0;
    let error = loop {
        match call(46, &[a as u64, (&raw const header) as u64, 0]) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(
        (count, error),
        (crate::net::unix::FILES_UNDER_WAY, Errno(109))
    );
}

#[test]
fn credentials_of_the_peer() {
    let _world = World::new();
    let (a, b) = pair(SOCK_STREAM);
    let (mut who, mut len) = (Ucred::default(), 12u32);
    let args = [
        a as u64,
        SOL_SOCKET.into(),
        17,
        (&raw mut who) as u64,
        (&raw mut len) as u64,
    ];
    assert_eq!(call(55, &args), Ok(0));
    assert_eq!(who.pid, crate::sched::pid() as i32);
    assert_eq!(setsockopt(b, SOL_SOCKET, 16, 1), Ok(0));
    send(a, b"me").unwrap();
    let mut into = [0u8; 8];
    let data = [into.as_mut_ptr() as u64, 8];
    let mut control = [0u64; 8];
    let mut header = message(&data, &mut control);
    assert_eq!(call(47, &[b as u64, (&raw mut header) as u64, 0]), Ok(2));
    assert_eq!(
        (control[0], control[1] >> 32),
        (28, u64::from(SCM_CREDENTIALS))
    );
}

/// R8: what stays inside may hold addresses, which differ between replicas.
#[test]
fn content_that_stays_inside_is_not_in_the_fingerprint() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let client = tcp();
    connect(client, &Address::Inet(LOOPBACK_IP, 80)).unwrap_err();
    let accepted = call(43, &[server as u64, 0, 0]).unwrap() as i32;
    let (a, b) = pair(SOCK_STREAM);
    let (_, outside) = world.connection(server, 80);
    let digested = |fd: i32| file::get(fd).unwrap().file.digested();
    assert!(![client, accepted, a, b].into_iter().any(digested));
    assert!(digested(outside));
    let udp = call(41, &[AF_INET.into(), u64::from(SOCK_DGRAM), 0]).unwrap() as i32;
    for (ip, wanted) in [(LOOPBACK_IP, false), (PEER_IP, true), (OWN_IP, false)] {
        let to = Address::Inet(ip, 9).bytes();
        call(
            44,
            &[udp as u64, to.as_ptr() as u64, 1, 0, to.as_ptr() as u64, 16],
        )
        .unwrap();
        assert_eq!(digested(udp), wanted);
    }
}
