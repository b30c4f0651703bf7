//! Seeded random command lines over all data types: right ones, wrong types, wrong arguments.

use quorate_tests::random::Random;

/// A space separates words. Small letters stand for something random (see [`word`]); everything else stands for itself.
const TEMPLATES: &[&str] = &[
    // Strings and numbers.
    "SET ks v",
    "SET ks v",
    "SET ks v NX",
    "SET ks v XX GET",
    "SET ks v KEEPTTL",
    "SETNX ks v",
    "GET ks",
    "GET ks",
    "GET ka",
    "GETSET ks v",
    "GETDEL ks",
    "GETEX ks PERSIST",
    "APPEND ks v",
    "STRLEN ks",
    "GETRANGE ks r r",
    "SUBSTR ks r r",
    "SETRANGE ks o v",
    "SET kn i",
    "INCR kn",
    "DECR kn",
    "INCRBY kn i",
    "DECRBY kn i",
    "INCRBYFLOAT kn d",
    "INCR ks",
    "MSET ks v ks v kn i",
    "MSETNX ks v kn i",
    "MGET ks kn ka ks",
    "LCS ks ks",
    "LCS ks ks LEN",
    "LCS ks ks IDX MINMATCHLEN 2 WITHMATCHLEN",
    // Bits.
    "SETBIT kb o b",
    "SETBIT kb o b",
    "GETBIT kb o",
    "BITCOUNT kb",
    "BITCOUNT kb r r",
    "BITCOUNT kb r r BIT",
    "BITPOS kb b",
    "BITPOS kb b r r",
    "BITOP AND kb kb ks",
    "BITOP OR kb kb kb",
    "BITOP XOR kb kb kb",
    "BITOP NOT kb kb",
    "BITFIELD kb SET u8 o i GET i16 o INCRBY u4 o i",
    "BITFIELD kb OVERFLOW SAT INCRBY i8 o i OVERFLOW FAIL INCRBY u3 o i",
    "BITFIELD_RO kb GET u63 o",
    // Hashes.
    "HSET kh f v",
    "HSET kh f v f i",
    "HSET kh f i",
    "HSETNX kh f v",
    "HGET kh f",
    "HMGET kh f f f",
    "HGETALL kh",
    "HDEL kh f",
    "HDEL kh f f",
    "HLEN kh",
    "HEXISTS kh f",
    "HINCRBY kh f i",
    "HINCRBYFLOAT kh f d",
    "HKEYS kh",
    "HVALS kh",
    "HSTRLEN kh f",
    "HMSET kh f v f v",
    // Lists.
    "LPUSH kl v",
    "RPUSH kl v v v",
    "LPUSH kl i",
    "RPUSH kl m m",
    "LPUSHX kl v",
    "RPUSHX kl v",
    "LPOP kl",
    "RPOP kl",
    "LPOP kl n",
    "RPOP kl n",
    "LLEN kl",
    "LRANGE kl r r",
    "LRANGE kl 0 -1",
    "LINDEX kl r",
    "LSET kl r v",
    "LINSERT kl BEFORE m v",
    "LINSERT kl AFTER m v",
    "LREM kl r m",
    "LTRIM kl r r",
    "LPOS kl m",
    "LPOS kl m RANK r COUNT 0",
    "RPOPLPUSH kl kl",
    "LMOVE kl kl LEFT RIGHT",
    "LMPOP 2 kl kl LEFT COUNT n",
    "BLPOP kl 0.001",
    // Sets.
    "SADD kt m m",
    "SADD kt i",
    "SADD ki i i i",
    "SREM kt m",
    "SREM ki i",
    "SCARD kt",
    "SISMEMBER kt m",
    "SMISMEMBER kt m m i",
    "SMEMBERS kt",
    "SMEMBERS ki",
    "SMOVE kt kt m",
    "SINTER kt kt",
    "SUNION kt ki",
    "SDIFF kt kt",
    "SINTERSTORE kt kt kt",
    "SUNIONSTORE kt kt kt",
    "SDIFFSTORE kt kt kt",
    "SINTERCARD 2 kt kt LIMIT n",
    // Sorted sets.
    "ZADD kz d m d m",
    "ZADD kz i m",
    "ZADD kz NX d m",
    "ZADD kz XX CH d m",
    "ZADD kz GT CH d m",
    "ZADD kz INCR d m",
    "ZINCRBY kz d m",
    "ZCARD kz",
    "ZSCORE kz m",
    "ZMSCORE kz m m",
    "ZRANK kz m",
    "ZREVRANK kz m",
    "ZRANGE kz 0 -1 WITHSCORES",
    "ZRANGE kz r r",
    "ZRANGE kz r r REV",
    "ZRANGE kz d d BYSCORE LIMIT 0 n",
    "ZRANGE kz - + BYLEX",
    "ZREVRANGE kz r r WITHSCORES",
    "ZRANGEBYSCORE kz -inf +inf WITHSCORES",
    "ZRANGEBYSCORE kz (d d",
    "ZRANGEBYLEX kz [m (m",
    "ZCOUNT kz d d",
    "ZLEXCOUNT kz - [m",
    "ZREM kz m",
    "ZREMRANGEBYSCORE kz d d",
    "ZREMRANGEBYRANK kz 5 r",
    "ZREMRANGEBYLEX kz [m [m",
    "ZPOPMIN kz",
    "ZPOPMAX kz n",
    "ZUNIONSTORE kz 2 kz kt WEIGHTS 2 d AGGREGATE MAX",
    "ZINTERSTORE kz 2 kz kz",
    "ZUNION 2 kz kz WITHSCORES",
    "ZINTER 2 kz kz AGGREGATE MIN WITHSCORES",
    "ZDIFF 2 kz kz",
    "ZINTERCARD 2 kz kz",
    "ZMPOP 1 kz MIN COUNT n",
    "ZRANGESTORE kz kz r r",
    // Places, estimates, streams.
    "GEOADD kg lo la m",
    "GEOADD kg lo la m lo la m",
    "GEODIST kg m m km",
    "GEOHASH kg m",
    "GEOPOS kg m m",
    "GEOSEARCH kg FROMLONLAT lo la BYRADIUS 2000 km ASC WITHCOORD WITHDIST",
    "PFADD kp m v",
    "PFADD kp i",
    "PFCOUNT kp",
    "PFCOUNT kp kp",
    "PFMERGE kp kp",
    "XADD kx x f v",
    "XADD kx x f v f v",
    "XLEN kx",
    "XRANGE kx - +",
    "XREVRANGE kx + - COUNT n",
    "XDEL kx x",
    "XTRIM kx MAXLEN n",
    "XREAD COUNT n STREAMS kx 0",
    "XINFO GROUPS kx",
    "XGROUP CREATE kx g 0",
    "XREADGROUP GROUP g c COUNT n STREAMS kx >",
    "XACK kx g x",
    // Keys.
    "DEL ka",
    "DEL ka ka",
    "UNLINK ka",
    "EXISTS ka ka",
    "TYPE ka",
    "TYPE ka",
    "RENAME ka ka",
    "RENAMENX ka ka",
    "COPY ka ka",
    "COPY ka ka REPLACE",
    "OBJECT ENCODING ka",
    "TOUCH ka ka",
    "EXPIREAT ka 9000000000",
    "PEXPIREAT ka 9000000000123",
    "EXPIRETIME ka",
    "PEXPIRETIME ka",
    "PERSIST ka",
    "EXPIRE ka -1",
    "DBSIZE",
    "KEYS k*",
    "KEYS k[st]:*",
    "MOVE ka 1",
    "SELECT b",
    "SELECT 0",
    "SELECT 0",
    "SORT kl ALPHA",
    "SORT kl ALPHA DESC LIMIT 0 n",
    "SORT ki",
    "SORT ki BY nosort:* GET #",
    "SORT kt ALPHA STORE kl",
    // No key at all, or not what it must be.
    "PING",
    "PING v",
    "ECHO v",
    "NOSUCH v",
    "GET",
    "SET ks",
    "SET ks v EX 0",
    "SET ks v NOSUCH",
    "INCRBY kn v",
    "LPUSH ka v",
    "HGET ka f",
    "SADD ka m",
    "ZADD ka d m",
    "ZADD kz v m",
    "APPEND ka v",
    "SETRANGE ks -1 v",
    "GETBIT kb -1",
    "LSET kl v v",
    "EXPIRE ka v",
    "SELECT 99",
    "OBJECT HELP",
    "COMMAND GETKEYS MSET ks v ks v",
    "COMMAND COUNT",
    "COMMAND INFO GET LMOVE",
    "EXEC",
    "DISCARD",
    "CONFIG GET maxmemory*",
    "CLIENT GETNAME",
    "CLIENT SETNAME m",
    "CLIENT NOSUCH",
    "DEBUG JMAP",
    "LOLWUT VERSION 99",
    "TIME",
    "TTL ka",
    "ACL WHOAMI",
    "ACL CAT string",
    "WAIT 0 1",
    "SLOWLOG LEN",
];

/// A random command line.
pub fn line(random: &mut Random) -> Vec<Vec<u8>> {
    let template = TEMPLATES[random.below(TEMPLATES.len())];
    let mut words: Vec<Vec<u8>> = template
        .split(' ')
        .map(|token| word(token, random))
        .collect();
    // Sometimes one too many, one too few, or in the wrong letters.
    match random.below(60) {
        0 => words.push(value(random)),
        // COMMAND alone is a table in the order of its hashes.
        1 if words.len() > 1 && words[0] != b"COMMAND" => {
            words.pop();
        }
        2 => words[0] = words[0].to_ascii_lowercase(),
        _ => {}
    }
    words
}

fn word(token: &str, random: &mut Random) -> Vec<u8> {
    let text = match token {
        "ka" => {
            return key(
                random.pick(&[
                    "ks", "kn", "kb", "kh", "kl", "kt", "ki", "kz", "kg", "kp", "kx",
                ]),
                random,
            );
        }
        "ks" | "kn" | "kb" | "kh" | "kl" | "kt" | "ki" | "kz" | "kg" | "kp" | "kx" => {
            return key(token, random);
        }
        "v" => return value(random),
        "f" => format!("field{}", random.below(30)),
        "m" => format!("member{}", random.below(200)),
        "[m" => format!("[member{}", random.below(200)),
        "(m" => format!("(member{}", random.below(200)),
        "i" => integer(random).to_string(),
        "n" => random.below(20).to_string(),
        "r" => random.between(-12, 12).to_string(),
        "o" => random.below(600).to_string(),
        "b" => random.below(2).to_string(),
        "d" => number(random),
        "(d" => format!("({}", number(random)),
        "lo" => format!("{}.{}", random.between(-179, 179), random.below(100_000)),
        "la" => format!("{}.{}", random.between(-84, 84), random.below(100_000)),
        "x" => format!("{}-{}", random.below(3000), random.below(4)),
        other => other.to_owned(),
    };
    text.into_bytes()
}

fn key(kind: &str, random: &mut Random) -> Vec<u8> {
    format!("{kind}:{}", random.below(8)).into_bytes()
}

fn integer(random: &mut Random) -> i64 {
    match random.below(8) {
        0 => random.word() as i64,
        1 => random
            .pick::<i64>(&[&i64::MAX, &i64::MIN, &0, &-1, &65_536, &2_147_483_648])
            .to_owned(),
        _ => random.between(-1000, 1000),
    }
}

fn number(random: &mut Random) -> String {
    match random.below(6) {
        0 => random
            .pick(&[
                "1e10",
                "3.0e-7",
                "-0",
                "0.1",
                "1.7976931348623157e308",
                "5",
                "-17",
            ])
            .to_owned(),
        1 => random.between(-100, 100).to_string(),
        _ => format!("{}.{}", random.between(-100, 100), random.below(100_000)),
    }
}

fn value(random: &mut Random) -> Vec<u8> {
    match random.below(10) {
        0 => Vec::new(),
        1 => integer(random).to_string().into_bytes(),
        2 => {
            let len = random.below(100);
            random.bytes(len)
        }
        3 => {
            let len = 40 + random.below(10);
            vec![b'e'; len]
        }
        4 if random.below(4) == 0 => {
            let len = random.below(3000);
            random.bytes(len)
        }
        _ => format!("value {} \r\n\t\u{e9}", random.below(1000)).into_bytes(),
    }
}
