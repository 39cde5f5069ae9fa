//! The errors of system calls, by Linux's names and numbers (arm64 has the generic ones of `asm-generic/errno*.h`).

use core::fmt;

/// Makes the enum, its names and its texts from one table.
macro_rules! errnos {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// Why a system call failed. Its number, negated, is what x0 holds when the call returns.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(i32)]
        pub enum Errno {
            $(#[doc = $text] $name = $number,)*
        }

        impl Errno {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// `EINVAL` and the like.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// A description.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such file";
    ESRCH = 3, "no such process";
    EINTR = 4, "interrupted by a signal";
    EIO = 5, "input or output failed";
    ENXIO = 6, "no such device or address";
    E2BIG = 7, "argument list too long";
    ENOEXEC = 8, "not an executable of this machine";
    EBADF = 9, "bad file descriptor";
    ECHILD = 10, "no such child";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    EBUSY = 16, "busy";
    EEXIST = 17, "already there";
    EXDEV = 18, "on another device";
    ENODEV = 19, "no such device";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "a directory";
    EINVAL = 22, "invalid argument";
    EMFILE = 24, "too many open files";
    ENOTTY = 25, "not a terminal";
    EFBIG = 27, "file too large";
    ENOSPC = 28, "no room in the file system";
    ESPIPE = 29, "not seekable";
    EROFS = 30, "read-only file system";
    EPIPE = 32, "no reader of the pipe";
    ERANGE = 34, "out of range";
    EDEADLK = 35, "each would wait for the other";
    ENAMETOOLONG = 36, "name too long";
    ENOLCK = 37, "no room for a lock";
    ENOSYS = 38, "no such system call";
    ENOTEMPTY = 39, "directory not empty";
    ELOOP = 40, "too many symbolic links";
    ENOPKG = 65, "not built in";
    EOVERFLOW = 75, "too large";
    ELIBBAD = 80, "a library that is none";
    ENOTSUP = 95, "not supported";
    ETIMEDOUT = 110, "timed out";
    EHWPOISON = 133, "the memory of a page is gone";
    ERESTARTSYS = 512, "interrupted, and to be made again: never seen by a program";
    ERESTARTNOHAND = 514, "interrupted, and to be made again unless a handler runs: never seen by a program";
    ERESTARTBLOCK = 516, "interrupted, and to go on by restart_syscall: never seen by a program";
}

impl Errno {
    /// The error with this number, if it is one of these.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|&errno| errno as i32 == number)
    }

    /// The value of x0 when a call returns with this error.
    pub const fn returned(self) -> u64 {
        -(self as i64) as u64
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.text())
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::Errno;

    #[test]
    fn numbers_are_in_order_and_return_as_linux_has_them() {
        assert!(Errno::ALL.windows(2).all(|pair| (pair[0] as i32) < pair[1] as i32));
        assert!(Errno::ALL.iter().all(|&errno| (errno as i32) < 4096));
        assert_eq!(Errno::EPERM.returned(), u64::MAX);
        assert_eq!(Errno::ENOSYS.returned() as i64, -38);
        assert_eq!(Errno::from_number(22), Some(Errno::EINVAL));
        assert_eq!(Errno::from_number(0), None);
        assert_eq!(Errno::EFAULT.to_string(), "EFAULT: bad address");
    }
}
