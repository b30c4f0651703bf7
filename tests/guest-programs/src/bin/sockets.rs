//! Sockets within one machine: TCP and UDP over the loopback, and AF_UNIX.

use guest_programs::plain::{close, ignore, listen, socket, write_bytes};
use guest_programs::*;
use libc::*;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

fn text(error: std::io::Error) -> String {
    error.to_string()
}

fn code<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn option(fd: i32, name: i32) -> i32 {
    let (mut value, mut len) = (-1i32, 4u32);
    // SAFETY: `value` and `len` take the results, and `len` is the size of `value`.
    unsafe { getsockopt(fd, SOL_SOCKET, name, (&raw mut value).cast(), &mut len) };
    value
}

fn tcp() {
    check("TCP echo between threads", || {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
        let address = listener.local_addr().map_err(text)?;
        let server = thread::spawn(move || {
            for _ in 0..8 {
                let Ok((mut stream, _)) = listener.accept() else {
                    return;
                };
                thread::spawn(move || {
                    let mut buffer = vec![0u8; 10_000];
                    while let Ok(n) = stream.read(&mut buffer) {
                        if n == 0 || stream.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let clients: Vec<_> = (0..8)
            .map(|i| {
                thread::spawn(move || -> Outcome {
                    let mut stream = TcpStream::connect(address).map_err(text)?;
                    same!(stream.peer_addr().map_err(text)?, address);
                    let data = pattern(300_000 + i);
                    let mut writer = stream.try_clone().map_err(text)?;
                    let copy = data.clone();
                    let sender = thread::spawn(move || {
                        let _ = writer.write_all(&copy);
                        let _ = writer.shutdown(Shutdown::Write);
                    });
                    let mut back = Vec::new();
                    stream.read_to_end(&mut back).map_err(text)?;
                    sender.join().map_err(|_| "panicked")?;
                    holds!(back == data);
                    Ok(())
                })
            })
            .collect();
        for client in clients {
            client.join().map_err(|_| "panicked")??;
        }
        server.join().map_err(|_| "panicked")?;
        Ok(())
    });
    check("half-close", || {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
        let mut client = TcpStream::connect(listener.local_addr().map_err(text)?).map_err(text)?;
        let (mut server, _) = listener.accept().map_err(text)?;
        client.write_all(b"question").map_err(text)?;
        client.shutdown(Shutdown::Write).map_err(text)?;
        let mut question = String::new();
        server.read_to_string(&mut question).map_err(text)?;
        same!(question, "question");
        server.write_all(b"answer").map_err(text)?;
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).map_err(text)?;
        same!(answer, "answer");
        ignore(SIGPIPE);
        same!(code(client.write(b"x")), Some(EPIPE));
        Ok(())
    });
    check("a closed connection resets what is written to it", || {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
        let mut client = TcpStream::connect(listener.local_addr().map_err(text)?).map_err(text)?;
        let (server, _) = listener.accept().map_err(text)?;
        client.write_all(b"never read").map_err(text)?;
        thread::sleep(Duration::from_millis(20));
        drop(server);
        thread::sleep(Duration::from_millis(20));
        let mut byte = [0u8; 1];
        same!(code(client.read(&mut byte)), Some(ECONNRESET));
        Ok(())
    });
    check("refused, SO_ERROR, non-blocking connect", || {
        let free = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .map_err(text)?;
        same!(code(TcpStream::connect(free)), Some(ECONNREFUSED));
        let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
        for (target, error) in [
            (listener.local_addr().map_err(text)?, 0),
            (free, ECONNREFUSED),
        ] {
            let SocketAddr::V4(target) = target else {
                return Err("not IPv4".into());
            };
            // SAFETY: the address has 16 bytes; `wait` is a local.
            unsafe {
                let fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
                let address = sockaddr_in {
                    sin_family: AF_INET as u16,
                    sin_port: target.port().to_be(),
                    sin_addr: in_addr {
                        s_addr: u32::from_ne_bytes(target.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                let result = sys(connect(fd, (&raw const address).cast(), 16));
                holds!(
                    result == Err(EINPROGRESS)
                        || (error == 0 && result == Ok(0))
                        || result == Err(error),
                    "{result:?}"
                );
                let mut wait = pollfd {
                    fd,
                    events: POLLOUT,
                    revents: 0,
                };
                same!(poll(&mut wait, 1, 5000), 1);
                if result == Err(EINPROGRESS) {
                    same!(option(fd, SO_ERROR), error);
                }
                same!(option(fd, SO_ERROR), 0);
                close(fd);
            }
        }
        Ok(())
    });
    check("non-blocking streams, SO_RCVTIMEO, peek, options", || {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
        listener.set_nonblocking(true).map_err(text)?;
        same!(code(listener.accept()), Some(EAGAIN));
        listener.set_nonblocking(false).map_err(text)?;
        let mut client = TcpStream::connect(listener.local_addr().map_err(text)?).map_err(text)?;
        let (mut server, _) = listener.accept().map_err(text)?;
        let mut buffer = [0u8; 8];
        client.set_nonblocking(true).map_err(text)?;
        same!(code(client.read(&mut buffer)), Some(EAGAIN));
        let block = vec![0u8; 1 << 20];
        let mut sent = 0usize;
        while let Ok(n) = client.write(&block) {
            sent += n;
            holds!(sent < 64 << 20);
        }
        holds!(sent > 1000);
        client.set_nonblocking(false).map_err(text)?;
        let reader = thread::spawn(move || {
            let mut rest = vec![0u8; sent];
            server.read_exact(&mut rest).map(|()| server)
        });
        let mut server = reader.join().map_err(|_| "panicked")?.map_err(text)?;
        client
            .set_read_timeout(Some(Duration::from_millis(50)))
            .map_err(text)?;
        let start = Instant::now();
        same!(code(client.read(&mut buffer)), Some(EAGAIN));
        holds!(
            start.elapsed() >= Duration::from_millis(50)
                && start.elapsed() < Duration::from_secs(2)
        );
        server.write_all(b"peek").map_err(text)?;
        same!(client.peek(&mut buffer).map_err(text)?, 4);
        same!(client.read(&mut buffer).map_err(text)?, 4);
        client.set_nodelay(true).map_err(text)?;
        same!(client.nodelay().map_err(text)?, true);
        same!(
            (
                option(client.as_raw_fd(), SO_TYPE),
                option(listener.as_raw_fd(), SO_ACCEPTCONN)
            ),
            (SOCK_STREAM, 1)
        );
        let taken = listener.local_addr().map_err(text)?;
        same!(code(TcpListener::bind(taken)), Some(EADDRINUSE));
        same!(code(TcpListener::bind("192.0.2.1:80")), Some(EADDRNOTAVAIL));
        Ok(())
    });
    check("many connections", || {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
        let address = listener.local_addr().map_err(text)?;
        let mut pairs = Vec::new();
        for i in 0..200u32 {
            let mut client = TcpStream::connect(address).map_err(text)?;
            let (server, _) = listener.accept().map_err(text)?;
            client.write_all(&i.to_le_bytes()).map_err(text)?;
            pairs.push((client, server));
        }
        for (i, (_, server)) in pairs.iter_mut().enumerate() {
            let mut number = [0u8; 4];
            server.read_exact(&mut number).map_err(text)?;
            same!(u32::from_le_bytes(number), i as u32);
        }
        Ok(())
    });
}

fn udp() {
    check("UDP", || {
        let a = UdpSocket::bind("127.0.0.1:0").map_err(text)?;
        let b = UdpSocket::bind("127.0.0.1:0").map_err(text)?;
        let (at_a, at_b) = (a.local_addr().map_err(text)?, b.local_addr().map_err(text)?);
        let mut buffer = [0u8; 2000];
        for len in [0usize, 1, 1000] {
            a.send_to(&pattern(len), at_b).map_err(text)?;
            same!(b.recv_from(&mut buffer).map_err(text)?, (len, at_a));
            holds!(buffer[..len] == pattern(len)[..]);
        }
        a.send_to(&pattern(1000), at_b).map_err(text)?;
        a.send_to(b"second", at_b).map_err(text)?;
        // The rest of a datagram that does not fit is lost.
        same!(b.recv_from(&mut buffer[..10]).map_err(text)?.0, 10);
        same!(b.recv_from(&mut buffer).map_err(text)?.0, 6);
        b.connect(at_a).map_err(text)?;
        b.send(b"connected").map_err(text)?;
        same!(a.recv(&mut buffer).map_err(text)?, 9);
        b.set_read_timeout(Some(Duration::from_millis(30)))
            .map_err(text)?;
        same!(code(b.recv(&mut buffer)), Some(EAGAIN));
        let echo = thread::spawn(move || {
            let mut buffer = [0u8; 100];
            for _ in 0..100 {
                if let Ok((n, from)) = a.recv_from(&mut buffer) {
                    let _ = a.send_to(&buffer[..n], from);
                }
            }
        });
        b.set_read_timeout(Some(Duration::from_secs(5)))
            .map_err(text)?;
        for i in 0..100u32 {
            b.send(&i.to_le_bytes()).map_err(text)?;
            same!(b.recv(&mut buffer).map_err(text)?, 4);
            same!(buffer[..4], i.to_le_bytes());
        }
        echo.join().map_err(|_| "panicked")?;
        Ok(())
    });
    check("UDP on all addresses", || {
        let any = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(text)?;
        let port = any.local_addr().map_err(text)?.port();
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let from = UdpSocket::bind("127.0.0.1:0").map_err(text)?;
        from.send_to(b"x", to).map_err(text)?;
        let mut buffer = [0u8; 4];
        same!(
            any.recv_from(&mut buffer).map_err(text)?.1,
            from.local_addr().map_err(text)?
        );
        Ok(())
    });
}

fn unix() {
    let path = format!("/tmp/sockets-{}.sock", std::process::id());
    check("socket pairs", || {
        let (mut a, mut b) = UnixStream::pair().map_err(text)?;
        a.write_all(b"to b").map_err(text)?;
        let mut buffer = [0u8; 16];
        same!(b.read(&mut buffer).map_err(text)?, 4);
        b.set_nonblocking(true).map_err(text)?;
        same!(code(b.read(&mut buffer)), Some(EAGAIN));
        drop(a);
        same!(b.read(&mut buffer).map_err(text)?, 0);
        let (a, b) = UnixDatagram::pair().map_err(text)?;
        a.send(b"one").map_err(text)?;
        a.send(b"three").map_err(text)?;
        same!(
            (
                b.recv(&mut buffer).map_err(text)?,
                b.recv(&mut buffer).map_err(text)?
            ),
            (3, 5)
        );
        let mut ends = [0i32; 2];
        // SAFETY: the array has room for both.
        must(unsafe { socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends.as_mut_ptr()) })?;
        // SAFETY: the buffer has more bytes than are asked for.
        unsafe {
            write_bytes(ends[0], b"packet");
            same!(sys(read(ends[1], buffer.as_mut_ptr().cast(), 3)), Ok(3));
            close(ends[0]);
            same!(sys(read(ends[1], buffer.as_mut_ptr().cast(), 3)), Ok(0));
            close(ends[1]);
        }
        Ok(())
    });
    check("a listener at a path", || {
        let listener = UnixListener::bind(&path).map_err(text)?;
        same!(
            std::fs::symlink_metadata(&path)
                .map_err(text)?
                .file_type()
                .is_socket(),
            true
        );
        same!(code(UnixListener::bind(&path)), Some(EADDRINUSE));
        let mut client = UnixStream::connect(&path).map_err(text)?;
        let (mut server, _) = listener.accept().map_err(text)?;
        same!(
            client.peer_addr().map_err(text)?.as_pathname(),
            Some(std::path::Path::new(&path))
        );
        let data = pattern(1_000_000);
        let copy = data.clone();
        let sender = thread::spawn(move || client.write_all(&copy));
        let mut all = Vec::new();
        server.read_to_end(&mut all).map_err(text)?;
        sender.join().map_err(|_| "panicked")?.map_err(text)?;
        holds!(all == data);
        drop(listener);
        same!(code(UnixStream::connect(&path)), Some(ECONNREFUSED));
        std::fs::remove_file(&path).map_err(text)?;
        same!(code(UnixStream::connect(&path)), Some(ENOENT));
        drop(UnixListener::bind(&path).map_err(text)?);
        std::fs::remove_file(&path).map_err(text)?;
        std::fs::write(&path, "a file").map_err(text)?;
        same!(code(UnixStream::connect(&path)), Some(ECONNREFUSED));
        std::fs::remove_file(&path).map_err(text)?;
        Ok(())
    });
    check("a renamed socket is found at its new name", || {
        let listener = UnixListener::bind(&path).map_err(text)?;
        let new = format!("{path}-new");
        std::fs::rename(&path, &new).map_err(text)?;
        same!(code(UnixStream::connect(&path)), Some(ENOENT));
        let _client = UnixStream::connect(&new).map_err(text)?;
        listener.accept().map_err(text)?;
        std::fs::remove_file(&new).map_err(text)?;
        Ok(())
    });
    // SAFETY: the message's parts are locals that outlive the calls, and its control buffer has the
    // length that it names.
    check("open files pass through a socket", || unsafe {
        let (a, b) = UnixStream::pair().map_err(text)?;
        let file = anonymous_file("passed")?;
        write_bytes(file, b"inside");
        let mut byte = [1u8; 1];
        let mut part = iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let mut control = [0u64; 4];
        let mut message: msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = CMSG_SPACE(4) as usize;
        let header = CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = SOL_SOCKET;
        (*header).cmsg_type = SCM_RIGHTS;
        (*header).cmsg_len = CMSG_LEN(4) as usize;
        CMSG_DATA(header).cast::<i32>().write_unaligned(file);
        same!(sys(sendmsg(a.as_raw_fd(), &message, 0)), Ok(1));
        close(file);
        control = [0; 4];
        message.msg_controllen = 32;
        same!(sys(recvmsg(b.as_raw_fd(), &mut message, 0)), Ok(1));
        let header = CMSG_FIRSTHDR(&message);
        holds!(!header.is_null());
        let got = CMSG_DATA(header).cast::<i32>().read_unaligned();
        let mut content = [0u8; 6];
        same!(sys(pread(got, content.as_mut_ptr().cast(), 6, 0)), Ok(6));
        same!(&content, b"inside");
        close(got);
        let _ = control;
        Ok(())
    });
}

fn main() {
    tcp();
    udp();
    unix();
    // SAFETY: the descriptors are numbers; structures are locals that outlive the calls.
    check("what sockets refuse", || unsafe {
        same!(sys(socket(AF_INET, 77, 0)), Err(EINVAL));
        same!(sys(socket(99, SOCK_STREAM, 0)), Err(EAFNOSUPPORT));
        let fd = anonymous_file("not-a-socket")?;
        same!(sys(listen(fd, 1)), Err(ENOTSOCK));
        close(fd);
        let fd = socket(AF_INET, SOCK_STREAM, 0);
        same!(
            sys(send(fd, b"x".as_ptr().cast(), 1, MSG_NOSIGNAL)),
            Err(EPIPE)
        );
        let mut byte = [0u8; 1];
        same!(sys(recv(fd, byte.as_mut_ptr().cast(), 1, 0)), Err(ENOTCONN));
        same!(sys(shutdown(fd, SHUT_RD)), Err(ENOTCONN));
        close(fd);
        Ok(())
    });
    finish();
}
