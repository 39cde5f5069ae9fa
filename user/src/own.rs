//! Functions of a program that only touches memory of its own, each by name: [`own!`](crate::own!).
//!
//! They are the program's and not this crate's, because they are safe by what all their callers there pass.

/// Defines the functions that are named. The program that has them promises that what it passes is its own: memory that it
/// has mapped, without references to it, and descriptors that it has opened; or that the kernel refuses it.
///
/// - `call(number, [argument, ...])` makes a system call.
/// - `file(pages)` is the descriptor of a memory file with so many pages of zeros.
/// - `put(address, value)` stores a byte, or returns the fault.
/// - `word(address)` loads a word, and `put_word(address, word)` stores one, where it is mapped for that.
/// - `unmap_all([(address, pages), ...])` unmaps several, by `unmap`.
/// - `advise(address, pages, advice)` is what `madvise` returns, by `call`.
/// - `byte_of(file, page)` is the first byte of a page of a file, by `call`.
/// - `number(address, pages)` stores to each page its number and 1, by `put`.
/// - `unmap(address, pages)` and `protect(address, pages, protection)`, which are compared with success.
#[macro_export]
macro_rules! own {
    ($($name:ident),+) => {
        $($crate::own!(@$name);)+
    };
    (@call) => {
        fn call<const N: usize>(number: usize, some: [u64; N]) -> Result<u64, $crate::Errno> {
            let mut arguments = [0; 6];
            arguments[..N].copy_from_slice(&some);
            // SAFETY: the program passes what is its own, or is refused.
            unsafe { $crate::sys::call(number, arguments) }
        }
    };
    (@file) => {
        fn file(pages: u64) -> u64 {
            let arguments = [c"memory".as_ptr() as u64, 0, 0, 0, 0, 0];
            // SAFETY: it reads the name.
            let file = unsafe { $crate::sys::call($crate::abi::number::MEMFD_CREATE, arguments) }.expect("a file");
            let arguments = [file, pages * $crate::memory::PAGE, 0, 0, 0, 0];
            // SAFETY: nothing has mapped it yet.
            unsafe { $crate::sys::call($crate::abi::number::FTRUNCATE, arguments) }.expect("its size");
            file
        }
    };
    (@put) => {
        fn put(at: u64, value: u8) -> Result<(), $crate::probe::Fault> {
            // SAFETY: where it may be written, it is a mapping of the program's own.
            unsafe { $crate::probe::write(at, value) }
        }
    };
    (@word) => {
        fn word(at: u64) -> u64 {
            // SAFETY: it is mapped, and the program's own; a pager may serve it.
            unsafe { (at as *const u64).read_volatile() }
        }
    };
    (@put_word) => {
        fn put_word(at: u64, word: u64) {
            // SAFETY: it is mapped writable, and the program's own, without references to it; a pager may serve it.
            unsafe { (at as *mut u64).write_volatile(word) }
        }
    };
    (@advise) => {
        fn advise(at: u64, pages: u64, advice: u64) -> Result<u64, $crate::Errno> {
            call($crate::abi::number::MADVISE, [at, pages * $crate::memory::PAGE, advice])
        }
    };
    (@number) => {
        fn number(at: u64, pages: u64) {
            for page in 0..pages {
                $crate::answers::equal("stored", put(at + page * $crate::memory::PAGE, page as u8 + 1), Ok(()));
            }
        }
    };
    (@byte_of) => {
        fn byte_of(file: u64, page: u64) -> u8 {
            let (mut byte, at) = ([0], page * $crate::memory::PAGE);
            let read = call($crate::abi::number::PREAD64, [file, byte.as_mut_ptr() as u64, 1, at]);
            $crate::answers::equal("read", read, Ok(1));
            byte[0]
        }
    };
    (@unmap) => {
        fn unmap(at: u64, pages: u64) {
            // SAFETY: it is the program's own, and there are no references to it.
            $crate::answers::equal("unmapped", unsafe { $crate::memory::munmap(at, pages * $crate::memory::PAGE) }, Ok(()));
        }
    };
    (@unmap_all) => {
        fn unmap_all<const N: usize>(ranges: [(u64, u64); N]) {
            ranges.into_iter().for_each(|(at, pages)| unmap(at, pages));
        }
    };
    (@protect) => {
        fn protect(at: u64, pages: u64, protection: u64) {
            let bytes = pages * $crate::memory::PAGE;
            // SAFETY: as above.
            $crate::answers::equal("protected", unsafe { $crate::memory::mprotect(at, bytes, protection) }, Ok(()));
        }
    };
}
