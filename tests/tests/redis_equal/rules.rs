//! How replies are compared that cannot be equal byte for byte, with the reason for each.

use quorate_tests::resp::{bulk, elements};

/// How two replies are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Byte for byte.
    Bytes,
    /// The same elements in any order.
    Unordered,
    /// The same pairs of elements in any order.
    Pairs,
    /// The same once every number is taken as one digit.
    Shape,
}

/// Commands whose replies are not compared byte for byte, by which rule instead, and why. Everything else is.
pub const VOLATILE: &[(&str, Rule, &str)] = &[
    (
        "KEYS",
        Rule::Unordered,
        "order of a hash table, whose seed each server draws at its start",
    ),
    ("SMEMBERS", Rule::Unordered, "as KEYS"),
    ("SINTER", Rule::Unordered, "as KEYS"),
    ("SUNION", Rule::Unordered, "as KEYS"),
    ("SDIFF", Rule::Unordered, "as KEYS"),
    ("HKEYS", Rule::Unordered, "as KEYS"),
    ("HVALS", Rule::Unordered, "as KEYS"),
    ("HGETALL", Rule::Pairs, "as KEYS"),
    ("CONFIG GET", Rule::Pairs, "as KEYS"),
    ("ACL CAT", Rule::Unordered, "as KEYS"),
    ("TIME", Rule::Shape, "the time"),
    ("LASTSAVE", Rule::Shape, "the time of the start"),
    ("PTTL", Rule::Shape, "the time left"),
    ("TTL", Rule::Shape, "the time left"),
    (
        "CLIENT ID",
        Rule::Shape,
        "connections so far, those of the tests' own tools included",
    ),
    (
        "CLIENT INFO",
        Rule::Shape,
        "addresses, ports, ages and buffer sizes of connections",
    ),
    ("CLIENT LIST", Rule::Shape, "as CLIENT INFO"),
    ("OBJECT IDLETIME", Rule::Shape, "the time"),
    ("SLOWLOG LEN", Rule::Shape, "how long commands took"),
    ("ACL GENPASS", Rule::Shape, "random by nature"),
];
// Not sent at random, but tested on their own: RANDOMKEY, SRANDMEMBER, HRANDFIELD, ZRANDMEMBER and SPOP (random by nature),
// the SCAN family (cursors depend on the hash table's seed), INFO (by field), CONFIG GET * (port and address differ).
// Not sent at all: DEBUG OBJECT (shows an address, in which replicas differ by design), MEMORY USAGE and MEMORY STATS (depend
// on how the network cut the request up), DUMP of hashes and sets (order) and streams (times), CLUSTER, REPLICAOF, SAVE and
// others that need a second server or a disk.

/// The rule for a command line.
pub fn rule<W: AsRef<[u8]>>(words: &[W]) -> Rule {
    let mut line = String::new();
    for word in words.iter().take(2) {
        line.push_str(&String::from_utf8_lossy(word.as_ref()).to_ascii_uppercase());
        line.push(' ');
    }
    let named = VOLATILE.iter().find(|(command, ..)| {
        line.strip_prefix(command)
            .is_some_and(|rest| rest.starts_with(' '))
    });
    named.map_or(Rule::Bytes, |(_, rule, _)| *rule)
}

/// A reply in the form that the rule compares.
pub fn normal(reply: &[u8], rule: Rule) -> Vec<u8> {
    match rule {
        Rule::Bytes => reply.to_vec(),
        Rule::Unordered => sorted(reply, 1),
        Rule::Pairs => sorted(reply, 2),
        Rule::Shape => shape(reply),
    }
}

fn sorted(reply: &[u8], group: usize) -> Vec<u8> {
    let all = elements(reply);
    if all.is_empty() {
        return reply.to_vec();
    }
    let mut groups: Vec<Vec<u8>> = all.chunks(group).map(|chunk| chunk.concat()).collect();
    groups.sort_unstable();
    [
        format!("{} elements ", all.len()).into_bytes(),
        groups.concat(),
    ]
    .concat()
}

/// Numbers as one digit. The length of a bulk string is one too: it counts digits.
fn shape(reply: &[u8]) -> Vec<u8> {
    let content = bulk(reply).unwrap_or(reply);
    let mut shape = Vec::new();
    for byte in content {
        let byte = if byte.is_ascii_digit() { b'0' } else { *byte };
        if byte != b'0' || shape.last() != Some(&b'0') {
            shape.push(byte);
        }
    }
    shape
}

#[test]
fn rules_accept_what_they_say_and_nothing_else() {
    let one = b"*2\r\n$1\r\na\r\n$1\r\nb\r\n";
    let other = b"*2\r\n$1\r\nb\r\n$1\r\na\r\n";
    assert_eq!(normal(one, Rule::Unordered), normal(other, Rule::Unordered));
    assert_ne!(normal(one, Rule::Pairs), normal(other, Rule::Pairs));
    assert_ne!(normal(one, Rule::Bytes), normal(other, Rule::Bytes));
    assert_ne!(
        normal(one, Rule::Unordered),
        normal(b"*1\r\n$1\r\na\r\n", Rule::Unordered)
    );
    assert_eq!(
        normal(b"$5\r\nid=12\r\n", Rule::Shape),
        normal(b"$6\r\nid=345\r\n", Rule::Shape)
    );
    assert_ne!(
        normal(b":12\r\n", Rule::Shape),
        normal(b"-1\r\n", Rule::Shape)
    );
    assert_eq!(rule(&[b"client".to_vec(), b"LIST".to_vec()]), Rule::Shape);
    assert_eq!(
        rule(&[b"CLIENT".to_vec(), b"GETNAME".to_vec()]),
        Rule::Bytes
    );
    assert_eq!(rule(&[b"KEYS".to_vec(), b"*".to_vec()]), Rule::Unordered);
}
