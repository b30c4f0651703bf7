//! The protocol itself: inline commands, errors, RESP3, pieces, closing, many connections.

use quorate_tests::one_at_a_time;
use quorate_tests::random::Random;
use quorate_tests::resp::{Client, command, words};

use crate::rules::Rule;
use crate::{Both, generator};

#[test]
fn inline_commands() {
    let _turn = one_at_a_time("inline commands, quotes, empty lines");
    let both = Both::start();
    let mut pair = both.connect();
    for line in [
        "PING",
        "SET inline \"a b\\x41\\n\"",
        "GET inline",
        "ECHO 'x\\'y'",
        "NOSUCH a b",
        "  PING  ",
        "set a 1\tb",
        "EXISTS inline",
    ] {
        pair.send(format!("{line}\r\n").as_bytes());
        pair.reply();
    }
    pair.send(b"\r\n\r\nPING\n");
    assert_eq!(pair.reply(), b"+PONG\r\n");
    pair.send(b"PING\r\n*1\r\n$4\r\nPING\r\nECHO x\n");
    for _ in 0..3 {
        pair.reply();
    }
    both.finish();
}

const BROKEN: &[&[u8]] = &[
    b"*1\r\n$abc\r\n",
    b"*abc\r\n",
    b"*-5\r\nPING\r\n*1\r\n!4\r\n",
    b"*0\r\n*2\r\n$4\r\nECHO\r\n:5\r\n",
    b"*2147483648\r\n",
    b"*1\r\n$-3\r\n",
    b"*1\r\n$999999999999\r\n",
    b"SET a \"unbalanced\r\n",
    b"SET a 'x'y\r\n",
    b"POST / HTTP/1.1\r\n",
    b"Host: x\r\n",
    b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n1\r\n",
    b"PING\r\n*1\r\n$x\r\nPING\r\n",
];

#[test]
fn protocol_errors_end_the_connection() {
    let _turn = one_at_a_time("broken requests: the same error, then the end of the connection");
    let both = Both::start();
    for broken in BROKEN {
        let mut pair = both.connect();
        pair.same("SET a 1");
        pair.send(broken);
        pair.rest();
    }
    // A line that is longer than the server reads.
    let mut pair = both.connect();
    pair.send(&vec![b'x'; 70_000]);
    pair.rest();
    both.finish();
}

#[test]
fn resp3() {
    let _turn = one_at_a_time("HELLO 3 and the replies of RESP3");
    let both = Both::start();
    let mut pair = both.connect();
    pair.same("HELLO 4");
    pair.same("HELLO x");
    pair.same("HELLO 3 AUTH default wrong");
    pair.alike("HELLO 3 SETNAME three", Rule::Shape);
    for line in [
        "CLIENT GETNAME",
        "HSET h a 1 b 2",
        "HGETALL h",
        "SADD t 1 2 3",
        "SMEMBERS t",
        "ZADD z 1.5 a 2 b",
        "ZRANGE z 0 -1 WITHSCORES",
        "ZSCORE z a",
        "GET nokey",
        "LPOP nolist",
        "DEBUG PROTOCOL double",
        "DEBUG PROTOCOL bignum",
        "DEBUG PROTOCOL map",
        "DEBUG PROTOCOL set",
        "DEBUG PROTOCOL null",
        "DEBUG PROTOCOL attrib",
        "DEBUG PROTOCOL true",
        "DEBUG PROTOCOL verbatim",
        "GEOADD g 1 1 a",
        "GEOPOS g a b",
        "CONFIG GET maxmemory",
        "XADD x 1-1 f v",
        "XRANGE x - +",
        "MULTI",
        "HGETALL h",
        "EXEC",
        "CONFIG GET appendonly",
    ] {
        pair.same(line);
    }
    pair.same_words(&[
        "EVAL",
        "redis.setresp(3) return redis.call('HGETALL', 'h')",
        "0",
    ]);
    pair.same("SUBSCRIBE c");
    pair.send(&words("PUBLISH c m"));
    pair.reply();
    pair.reply();
    pair.alike("HELLO 2", Rule::Shape);
    pair.same("UNSUBSCRIBE c");
    pair.same("HGETALL h");
    both.finish();
}

#[test]
fn requests_in_pieces_and_half_closed_connections() {
    let _turn =
        one_at_a_time("requests byte by byte, and a client that ends its sending half first");
    let both = Both::start();
    let mut pair = both.connect();
    let stream = [
        words("SET pieces 12345"),
        words("GET pieces"),
        b"PING\r\n".to_vec(),
    ]
    .concat();
    for byte in &stream {
        pair.send(std::slice::from_ref(byte));
    }
    for _ in 0..3 {
        pair.reply();
    }
    // The server ends a connection whose client has ended its half, after what it was asked before.
    pair.send(&words("GET pieces"));
    pair.reply();
    pair.native.finish_sending().unwrap();
    pair.set.finish_sending().unwrap();
    assert_eq!(pair.rest(), b"");
    let mut refused = both.connect();
    refused.same("CONFIG SET maxclients 1");
    let mut over = both.connect();
    over.rest();
    refused.same("CONFIG SET maxclients 1000");
    both.finish();
}

/// As many connections at once, each with its own keys and its own commands, all at work at the same time.
fn connections(count: usize, rounds: usize) {
    let both = Both::start();
    let run = |address| {
        let mut clients: Vec<Client> = (0..count)
            .map(|_| Client::connect(address).unwrap())
            .collect();
        let mut replies = vec![Vec::new(); count];
        for round in 0..rounds {
            let mut wanted = vec![0; count];
            for (number, client) in clients.iter_mut().enumerate() {
                let mut random = Random::new((number * 1000 + round) as u64);
                let mut requests = words(&format!(
                    "SET own:{number} {}",
                    "v".repeat(random.below(3000))
                ));
                for line in [
                    format!("GET own:{number}"),
                    format!("INCR count:{number}"),
                    format!("APPEND log:{number} {round}"),
                ] {
                    requests.extend(words(&line));
                }
                wanted[number] = 4;
                client.send(&requests).unwrap();
            }
            for (number, client) in clients.iter_mut().enumerate() {
                for _ in 0..wanted[number] {
                    replies[number].extend(client.reply().unwrap());
                }
            }
        }
        replies
    };
    let (native, set) = (run(both.native.address()), run(both.set.address()));
    for (number, (native, set)) in native.iter().zip(&set).enumerate() {
        assert!(native == set, "connection {number} of {count}");
        assert!(set.len() > rounds * 20);
    }
    // The connections are gone; the server has noticed and goes on.
    let mut pair = both.connect();
    pair.is("DBSIZE", &format!(":{}\r\n", count * 3));
    both.finish();
}

#[test]
fn fifty_connections() {
    let _turn = one_at_a_time("50 connections at once");
    connections(50, 20);
}

#[test]
fn five_hundred_connections() {
    let _turn = one_at_a_time("500 connections at once");
    connections(500, 5);
}

#[test]
fn random_streams_on_several_connections() {
    let _turn = one_at_a_time("random commands from ten connections in turn");
    let mut random = Random::from_env(7);
    let both = Both::start();
    let mut pairs: Vec<_> = (0..10).map(|_| both.connect()).collect();
    for _ in 0..1500 {
        let line = generator::line(&mut random);
        let rule = crate::rules::rule(&line);
        let which = random.below(pairs.len());
        pairs[which].alike_bytes(&command(&line), rule);
    }
    both.finish();
}
