//! The real curl.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Error;
use crate::process::run;

/// How long one run of curl may take.
const TIMEOUT: Duration = Duration::from_secs(300);

/// What curl did with one address.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The status of the answer.
    pub status: u32,
    /// Bytes of its body.
    pub length: usize,
    /// Connections that were made for it: 0 if an old one was used again.
    pub connects: usize,
}

/// Fetches all of `fetches` (address, then the file that takes head and body) in one run with `arguments`, which may say
/// `--parallel`.
///
/// # Errors
/// When curl cannot be run or says that a transfer failed.
pub fn fetch_all(
    fetches: &[(String, std::path::PathBuf)],
    directory: &Path,
    arguments: &[&str],
) -> Result<Vec<Transfer>, Error> {
    let mut config = String::new();
    for (url, path) in fetches {
        config.push_str(&format!(
            "url = \"{url}\"\noutput = \"{}\"\n",
            path.display()
        ));
    }
    let file = directory.join("curl.config");
    std::fs::write(&file, config).map_err(|source| Error::Io {
        what: file.display().to_string(),
        source,
    })?;
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--include"])
        .args([
            "--write-out",
            "%{http_code} %{size_download} %{num_connects}\\n",
        ])
        .args(arguments)
        .arg("--config")
        .arg(&file);
    let ended = run(command, TIMEOUT)?;
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    if ended.code != 0 {
        return Err(Error::Unexpected(format!(
            "curl ended with {}: {}",
            ended.code, ended.stderr
        )));
    }
    text.lines().map(transfer).collect()
}

fn transfer(line: &str) -> Result<Transfer, Error> {
    let mut numbers = line.split(' ').map(str::parse::<usize>);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(status)), Some(Ok(length)), Some(Ok(connects))) => Ok(Transfer {
            status: u32::try_from(status).unwrap_or(u32::MAX),
            length,
            connects,
        }),
        _ => Err(Error::Unexpected(format!("curl said {line:?}"))),
    }
}

/// Runs curl for `url` with `arguments` and returns all that it printed, `--include` assumed: head and body as they came.
///
/// # Errors
/// When curl cannot be run or says that the transfer failed.
pub fn fetch(url: &str, arguments: &[&str]) -> Result<Vec<u8>, Error> {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--include", "--path-as-is"])
        .args(arguments)
        .arg(url);
    let ended = run(command, TIMEOUT)?;
    if ended.code == 0 {
        Ok(ended.stdout)
    } else {
        Err(Error::Unexpected(format!(
            "curl {arguments:?} {url} ended with {}: {}",
            ended.code, ended.stderr
        )))
    }
}

/// An answer of a web server without what may differ between two servers at two moments: the value of `Date`.
#[must_use]
pub fn masked(answer: &[u8]) -> Vec<u8> {
    const DATE: &[u8] = b"\r\nDate: ";
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap_or(answer.len());
    let mut masked = answer.to_vec();
    if let Some(at) = answer[..end].windows(DATE.len()).position(|w| w == DATE) {
        let from = at + DATE.len();
        let to = answer[from..]
            .iter()
            .position(|&byte| byte == b'\r')
            .map_or(answer.len(), |length| from + length);
        masked[from..to].fill(b'-');
    }
    masked
}

/// The body of an answer: what follows its head.
#[must_use]
pub fn body(answer: &[u8]) -> &[u8] {
    answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map_or(&[], |end| &answer[end + 4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_value_of_date_is_masked() {
        let answer = b"HTTP/1.1 200 OK\r\nDate: Sun, 22\r\nETag: \"1\"\r\n\r\n\r\nDate: x\r\n";
        let expected = b"HTTP/1.1 200 OK\r\nDate: -------\r\nETag: \"1\"\r\n\r\n\r\nDate: x\r\n";
        assert_eq!(masked(answer), expected);
        assert_eq!(body(answer), b"\r\nDate: x\r\n");
    }
}
