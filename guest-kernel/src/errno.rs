//! Linux error numbers.

/// A Linux error number (positive).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Errno(pub i32);

/// Result of a kernel operation.
pub type Result<T> = core::result::Result<T, Errno>;

/// What a system call returns: a value, or an error number.
pub type SysResult = Result<u64>;

/// `EPERM`
pub const EPERM: Errno = Errno(1);
/// `ENOENT`
pub const ENOENT: Errno = Errno(2);
/// `ESRCH`
pub const ESRCH: Errno = Errno(3);
/// `EINTR`
pub const EINTR: Errno = Errno(4);
/// `EIO`
pub const EIO: Errno = Errno(5);
/// `ENXIO`
pub const ENXIO: Errno = Errno(6);
/// `E2BIG`
pub const E2BIG: Errno = Errno(7);
/// `ENOEXEC`
pub const ENOEXEC: Errno = Errno(8);
/// `EBADF`
pub const EBADF: Errno = Errno(9);
/// `ECHILD`
pub const ECHILD: Errno = Errno(10);
/// `EAGAIN`
pub const EAGAIN: Errno = Errno(11);
/// `ENOMEM`
pub const ENOMEM: Errno = Errno(12);
/// `EACCES`
pub const EACCES: Errno = Errno(13);
/// `EFAULT`
pub const EFAULT: Errno = Errno(14);
/// `EBUSY`
pub const EBUSY: Errno = Errno(16);
/// `EEXIST`
pub const EEXIST: Errno = Errno(17);
/// `EXDEV`
pub const EXDEV: Errno = Errno(18);
/// `ENODEV`
pub const ENODEV: Errno = Errno(19);
/// `ENOTDIR`
pub const ENOTDIR: Errno = Errno(20);
/// `EISDIR`
pub const EISDIR: Errno = Errno(21);
/// `EINVAL`
pub const EINVAL: Errno = Errno(22);
/// `ENFILE`
pub const ENFILE: Errno = Errno(23);
/// `EMFILE`
pub const EMFILE: Errno = Errno(24);
/// `ENOTTY`
pub const ENOTTY: Errno = Errno(25);
/// `ETXTBSY`
pub const ETXTBSY: Errno = Errno(26);
/// `EFBIG`
pub const EFBIG: Errno = Errno(27);
/// `ENOSPC`
pub const ENOSPC: Errno = Errno(28);
/// `ESPIPE`
pub const ESPIPE: Errno = Errno(29);
/// `EROFS`
pub const EROFS: Errno = Errno(30);
/// `EMLINK`
pub const EMLINK: Errno = Errno(31);
/// `EPIPE`
pub const EPIPE: Errno = Errno(32);
/// `EDOM`
pub const EDOM: Errno = Errno(33);
/// `ERANGE`
pub const ERANGE: Errno = Errno(34);
/// `EDEADLK`
pub const EDEADLK: Errno = Errno(35);
/// `ENAMETOOLONG`
pub const ENAMETOOLONG: Errno = Errno(36);
/// `ENOLCK`
pub const ENOLCK: Errno = Errno(37);
/// `ENOSYS`
pub const ENOSYS: Errno = Errno(38);
/// `ENOTEMPTY`
pub const ENOTEMPTY: Errno = Errno(39);
/// `ELOOP`
pub const ELOOP: Errno = Errno(40);
/// `ENODATA`
pub const ENODATA: Errno = Errno(61);
/// `EOVERFLOW`
pub const EOVERFLOW: Errno = Errno(75);
/// `EPROTO`
pub const EPROTO: Errno = Errno(71);
/// `ENOTSOCK`
pub const ENOTSOCK: Errno = Errno(88);
/// `EDESTADDRREQ`
pub const EDESTADDRREQ: Errno = Errno(89);
/// `EMSGSIZE`
pub const EMSGSIZE: Errno = Errno(90);
/// `EPROTOTYPE`
pub const EPROTOTYPE: Errno = Errno(91);
/// `ENOPROTOOPT`
pub const ENOPROTOOPT: Errno = Errno(92);
/// `EPROTONOSUPPORT`
pub const EPROTONOSUPPORT: Errno = Errno(93);
/// `ESOCKTNOSUPPORT`
pub const ESOCKTNOSUPPORT: Errno = Errno(94);
/// `EOPNOTSUPP`
pub const EOPNOTSUPP: Errno = Errno(95);
/// `EAFNOSUPPORT`
pub const EAFNOSUPPORT: Errno = Errno(97);
/// `EADDRINUSE`
pub const EADDRINUSE: Errno = Errno(98);
/// `EADDRNOTAVAIL`
pub const EADDRNOTAVAIL: Errno = Errno(99);
/// `ENETDOWN`
pub const ENETDOWN: Errno = Errno(100);
/// `ENETUNREACH`
pub const ENETUNREACH: Errno = Errno(101);
/// `ECONNABORTED`
pub const ECONNABORTED: Errno = Errno(103);
/// `ECONNRESET`
pub const ECONNRESET: Errno = Errno(104);
/// `ENOBUFS`
pub const ENOBUFS: Errno = Errno(105);
/// `EISCONN`
pub const EISCONN: Errno = Errno(106);
/// `ENOTCONN`
pub const ENOTCONN: Errno = Errno(107);
/// `ESHUTDOWN`
pub const ESHUTDOWN: Errno = Errno(108);
/// `ETIMEDOUT`
pub const ETIMEDOUT: Errno = Errno(110);
/// `ECONNREFUSED`
pub const ECONNREFUSED: Errno = Errno(111);
/// `EHOSTUNREACH`
pub const EHOSTUNREACH: Errno = Errno(113);
/// `EALREADY`
pub const EALREADY: Errno = Errno(114);
/// `EINPROGRESS`
pub const EINPROGRESS: Errno = Errno(115);
