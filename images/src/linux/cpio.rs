//! Archives in the "new" format of cpio without checksums, which Linux unpacks as its initial RAM disk (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst). Everything belongs to root and has the time 0, so that the same
//! files give the same bytes.

use std::io;

/// What each entry begins with.
const MAGIC: &[u8] = b"070701";
/// Bytes of an entry's header.
const HEADER: usize = 110;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Archives are padded to this, so that another one may follow.
const BLOCK: usize = 512;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive in the making.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory. Those above it must be there already.
    pub(super) fn dir(&mut self, path: &str, perm: u32) -> io::Result<()> {
        self.entry(path, S_IFDIR | perm, 2, (0, 0), b"")
    }

    /// Adds a regular file.
    pub(super) fn file(&mut self, path: &str, perm: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, S_IFREG | perm, 1, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, S_IFLNK | 0o777, 1, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, perm: u32, number: (u32, u32)) -> io::Result<()> {
        self.entry(path, S_IFCHR | perm, 1, number, b"")
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> io::Result<Vec<u8>> {
        // The trailer's own inode number is 0.
        self.entries = u32::MAX;
        self.entry(TRAILER, 0, 1, (0, 0), b"")?;
        let padded = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(padded, 0);
        Ok(self.bytes)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        links: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("{path} is too large for an archive")))?;
        self.entries = self.entries.wrapping_add(1);
        let name = path.trim_start_matches('/');
        let name_size = name.len() as u32 + 1;
        self.bytes.extend_from_slice(MAGIC);
        // inode, mode, uid, gid, links, time, size, device (2), device of a special file (2), length of the name, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

/// One entry of an archive that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpioEntry {
    /// Path without a leading slash.
    pub path: String,
    /// File type and permissions.
    pub mode: u32,
    /// Contents, or the target of a link.
    pub content: Vec<u8>,
}

/// Reads one archive or several after each other, as the kernel does. `None` if the bytes are something else.
#[must_use]
pub fn read_cpio(mut bytes: &[u8]) -> Option<Vec<CpioEntry>> {
    let mut entries = Vec::new();
    loop {
        // Zeroes between archives.
        while let Some(rest) = bytes.strip_prefix(&[0; 4]) {
            bytes = rest;
        }
        if bytes.is_empty() {
            return Some(entries);
        }
        let header = bytes.get(..HEADER)?;
        let field = |index: usize| {
            let start = MAGIC.len() + index * 8;
            let text = std::str::from_utf8(header.get(start..start + 8)?).ok()?;
            usize::from_str_radix(text, 16).ok()
        };
        if !header.starts_with(MAGIC) {
            return None;
        }
        let (mode, size, name_size) = (field(1)?, field(6)?, field(11)?);
        let name_end = HEADER.checked_add(name_size)?;
        let name = bytes.get(HEADER..name_end.checked_sub(1)?)?;
        let start = name_end.next_multiple_of(4);
        let end = start.checked_add(size)?;
        let content = bytes.get(start..end)?.to_vec();
        bytes = bytes.get(end.next_multiple_of(4)..)?;
        let path = String::from_utf8(name.to_vec()).ok()?;
        if path != TRAILER {
            entries.push(CpioEntry {
                path,
                mode: u32::try_from(mode).ok()?,
                content,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut archive = Archive::default();
        archive.dir("/bin", 0o755).unwrap();
        archive.file("/bin/a", 0o755, b"12345").unwrap();
        archive.symlink("/bin/b", "a").unwrap();
        archive.device("/console", 0o600, (5, 1)).unwrap();
        let one = archive.finish().unwrap();
        assert_eq!(one.len() % BLOCK, 0);
        // By the format's description: inode 2, a regular file with 0755, one link, five bytes, a name of six with its zero.
        let expected = b"07070100000002000081ed00000000000000000000000100000000000000050000000000000000000000000000000000000006";
        let at = one.windows(6).enumerate().filter(|(_, w)| w == &MAGIC);
        let second = at.map(|(at, _)| at).nth(1).unwrap();
        let header = &one[second..second + expected.len()];
        assert_eq!(
            String::from_utf8_lossy(header),
            String::from_utf8_lossy(expected)
        );
        let entry = |path: &str, mode, content: &[u8]| CpioEntry {
            path: path.to_owned(),
            mode,
            content: content.to_vec(),
        };
        let entries = [
            entry("bin", 0o040_755, b""),
            entry("bin/a", 0o100_755, b"12345"),
            entry("bin/b", 0o120_777, b"a"),
            entry("console", 0o020_600, b""),
        ];
        assert_eq!(read_cpio(&one).unwrap(), entries);
        let two = [&one[..], &one[..]].concat();
        assert_eq!(read_cpio(&two).unwrap().len(), 8);
        assert_eq!(read_cpio(b"070702"), None);
        assert_eq!(read_cpio(&one[..200]), None);
    }
}
