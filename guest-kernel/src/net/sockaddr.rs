//! Socket addresses, in and out of a program's memory.

use super::msg::{AF_INET, AF_UNIX, AF_UNSPEC, SOCKADDR_MAX, SockaddrIn, UNIX_PATH_MAX};
use crate::errno::{EAFNOSUPPORT, EINVAL, Result};
use crate::user;
use alloc::vec::Vec;

/// An IPv4 address as a number (host order).
pub type Ip = u32;
/// 0.0.0.0
pub const ANY: Ip = 0;
/// 255.255.255.255
pub const BROADCAST: Ip = u32::MAX;

/// Whether an address is in 127.0.0.0/8.
pub fn is_loopback(ip: Ip) -> bool {
    ip >> 24 == 127
}

/// Whether an address is in 224.0.0.0/4.
pub fn is_multicast(ip: Ip) -> bool {
    ip >> 28 == 14
}

/// Name of an AF_UNIX socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum UnixName {
    /// None.
    #[default]
    Unnamed,
    /// A path.
    Path(Vec<u8>),
    /// A name in the abstract name space (without the leading NUL).
    Abstract(Vec<u8>),
}

/// A socket address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// AF_UNSPEC: dissolves an association.
    Unspec,
    /// AF_INET.
    Inet(Ip, u16),
    /// AF_UNIX.
    Unix(UnixName),
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// `EFAULT`; `EINVAL` if the length is wrong; `EAFNOSUPPORT` for other families.
    pub fn read(addr: u64, len: u32) -> Result<Self> {
        let len = len as usize;
        if !(2..=SOCKADDR_MAX).contains(&len) {
            return Err(EINVAL);
        }
        Self::parse(user::bytes(addr, len)?)
    }

    /// Reads an address from bytes.
    ///
    /// # Errors
    /// As [`Address::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (family, rest) = bytes.split_first_chunk::<2>().ok_or(EINVAL)?;
        match u16::from_le_bytes(*family) {
            AF_UNSPEC => Ok(Self::Unspec),
            AF_INET => match rest {
                [p0, p1, a, b, c, d, ..] if bytes.len() >= size_of::<SockaddrIn>() => {
                    Ok(Self::Inet(
                        u32::from_be_bytes([*a, *b, *c, *d]),
                        u16::from_be_bytes([*p0, *p1]),
                    ))
                }
                _ => Err(EINVAL),
            },
            AF_UNIX => {
                if rest.len() > UNIX_PATH_MAX {
                    return Err(EINVAL);
                }
                Ok(Self::Unix(match rest {
                    [] => UnixName::Unnamed,
                    [0, name @ ..] => UnixName::Abstract(name.to_vec()),
                    path => {
                        let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
                        UnixName::Path(path[..end].to_vec())
                    }
                }))
            }
            _ => Err(EAFNOSUPPORT),
        }
    }

    /// The bytes that Linux would give.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Unspec => out.extend_from_slice(&AF_UNSPEC.to_le_bytes()),
            Self::Inet(ip, port) => {
                out.extend_from_slice(&AF_INET.to_le_bytes());
                out.extend_from_slice(&port.to_be_bytes());
                out.extend_from_slice(&ip.to_be_bytes());
                out.extend_from_slice(&[0; 8]);
            }
            Self::Unix(name) => {
                out.extend_from_slice(&AF_UNIX.to_le_bytes());
                match name {
                    UnixName::Unnamed => {}
                    UnixName::Path(path) => {
                        out.extend_from_slice(path);
                        out.push(0);
                    }
                    UnixName::Abstract(name) => {
                        out.push(0);
                        out.extend_from_slice(name);
                    }
                }
            }
        }
        out
    }

    /// Writes the address to `addr`, cut to the length that is stored at `len_addr`, and its full length there.
    /// Nothing is written if `addr` is null.
    ///
    /// # Errors
    /// `EFAULT`; `EINVAL` for a negative length.
    pub fn write(&self, addr: u64, len_addr: u64) -> Result<()> {
        if addr == 0 {
            return Ok(());
        }
        let room: i32 = user::read(len_addr)?;
        let room = usize::try_from(room).map_err(|_| EINVAL)?;
        let bytes = self.bytes();
        user::copy_out(addr, &bytes[..bytes.len().min(room)])?;
        user::write(len_addr, bytes.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for address in [
            Address::Unspec,
            Address::Inet(0x0a00_020f, 6379),
            Address::Unix(UnixName::Unnamed),
            Address::Unix(UnixName::Path(b"/run/x.sock".to_vec())),
            Address::Unix(UnixName::Abstract(b"a\0b".to_vec())),
        ] {
            assert_eq!(Address::parse(&address.bytes()), Ok(address));
        }
    }

    #[test]
    fn malformed_addresses_are_refused() {
        assert_eq!(Address::parse(&[2, 0, 0, 80, 1, 2, 3, 4]), Err(EINVAL));
        assert_eq!(Address::parse(&[2]), Err(EINVAL));
        assert_eq!(Address::parse(&[10, 0, 1, 2]), Err(EAFNOSUPPORT));
        assert_eq!(
            Address::parse(&[[1, 0].as_slice(), &[b'x'; 109]].concat()),
            Err(EINVAL)
        );
    }
}
