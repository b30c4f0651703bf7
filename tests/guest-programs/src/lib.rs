//! What the guest programs share: a runner that prints one line for each check, and a way to make an access and learn which signal
//! it raised.
//!
//! The programs are ordinary Linux programs. They must pass on Linux itself, natively: that is what makes them a measure of the
//! embedded kernel. They print no address and no time, so that replicas agree (R8).

pub mod plain;
pub mod probe;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};

static FAILED: AtomicU32 = AtomicU32::new(0);

/// Outcome of a check: the text says what was wrong.
pub type Outcome = Result<(), String>;

/// Runs one check and prints `ok NAME` or `FAIL NAME: why`.
pub fn check(name: &str, body: impl FnOnce() -> Outcome) {
    let result = std::panic::catch_unwind(AssertUnwindSafe(body));
    match result {
        Ok(Ok(())) => println!("ok {name}"),
        Ok(Err(why)) => {
            FAILED.fetch_add(1, Ordering::Relaxed);
            println!("FAIL {name}: {why}");
        }
        Err(payload) => {
            FAILED.fetch_add(1, Ordering::Relaxed);
            let text = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied());
            println!("FAIL {name}: panicked: {}", text.unwrap_or("?"));
        }
    }
}

/// Ends the program: status 0 if all checks passed.
pub fn finish() -> ! {
    println!("done");
    std::process::exit(i32::from(FAILED.load(Ordering::Relaxed) > 0))
}

/// Fails the check unless both are equal.
#[macro_export]
macro_rules! same {
    ($left:expr, $right:expr) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    return Err(format!(
                        "line {}: {} is {:?}, not {:?}",
                        line!(),
                        stringify!($left),
                        left,
                        right
                    ));
                }
            }
        }
    };
}

/// Fails the check unless the condition holds.
#[macro_export]
macro_rules! holds {
    ($condition:expr) => {
        if !$condition {
            return Err(format!("line {}: not so: {}", line!(), stringify!($condition)));
        }
    };
    ($condition:expr, $($detail:tt)+) => {
        if !$condition {
            return Err(format!("line {}: not so: {}: {}", line!(), stringify!($condition), format!($($detail)+)));
        }
    };
}

/// The result of a C call: its value, or errno.
pub fn sys(value: impl TryInto<i64>) -> Result<i64, i32> {
    match value.try_into() {
        Ok(-1) => Err(errno()),
        Ok(value) => Ok(value),
        Err(_) => Err(0),
    }
}

/// As [`sys`], for calls that must succeed.
pub fn must(value: impl TryInto<i64>) -> Result<i64, String> {
    sys(value).map_err(|error| {
        format!(
            "errno {error} ({})",
            std::io::Error::from_raw_os_error(error)
        )
    })
}

/// The calling thread's errno.
pub fn errno() -> i32 {
    // SAFETY: the location is the thread's own.
    unsafe { *libc::__errno_location() }
}

/// A temporary file that has no name any more.
pub fn anonymous_file(name: &str) -> Result<i32, String> {
    let path = format!("/tmp/{name}-{}\0", std::process::id());
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
    // SAFETY: the path ends with a zero byte.
    let fd = must(unsafe { libc::open(path.as_ptr().cast(), flags, 0o600) })?;
    // SAFETY: the path ends with a zero byte.
    must(unsafe { libc::unlink(path.as_ptr().cast()) })?;
    Ok(fd as i32)
}
