//! The first instructions of a program, and what the kernel left on its stack.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use core::ffi::CStr;

/// The stack of a new program, as the kernel leaves it: arguments, environment, auxiliary vector: argc,
/// argv, 0, envp, 0, auxv, at SP.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    stack: *const u64,
}

impl Start {
    /// How many arguments, the program's name included.
    pub fn count(&self) -> usize {
        // SAFETY: the kernel put argc at SP.
        unsafe { *self.stack as usize }
    }

    /// The arguments, the program's name first.
    pub fn arguments(&self) -> impl Iterator<Item = &'static str> + use<> {
        // SAFETY: argv is behind argc and ends with a null pointer.
        unsafe { strings(self.stack.add(1)) }
    }

    /// The arguments behind the program's name as numbers, if there are so many, and these are numbers.
    pub fn numbers<const N: usize>(&self) -> Option<[u64; N]> {
        let (mut words, mut numbers) = (self.arguments().skip(1), [0; N]);
        for number in &mut numbers {
            *number = words.next()?.parse().ok()?;
        }
        Some(numbers)
    }

    /// The part of a program that its first argument names.
    pub fn part<F: Copy>(&self, parts: &[(&str, F)]) -> Option<F> {
        let word = self.arguments().nth(1)?;
        parts.iter().find(|(name, _)| *name == word).map(|(_, part)| *part)
    }

    /// The environment, `KEY=VALUE` each.
    pub fn environment(&self) -> impl Iterator<Item = &'static str> + use<> {
        // SAFETY: envp is behind argv's null pointer and ends with one itself.
        unsafe { strings(self.environment_start()) }
    }

    /// The value that the auxiliary vector has for a key.
    pub fn auxiliary(&self, key: u64) -> Option<u64> {
        // SAFETY: the vector is behind envp's null pointer, in pairs, and ends with key 0.
        unsafe {
            let mut entry = self.environment_start();
            while *entry != 0 {
                entry = entry.add(1);
            }
            entry = entry.add(1);
            while *entry != granule_abi::process::AT_NULL {
                if *entry == key {
                    return Some(*entry.add(1));
                }
                entry = entry.add(2);
            }
        }
        None
    }

    /// The path of the program's file.
    ///
    /// # Panics
    /// The kernel has stored none.
    pub fn path(&self) -> &'static CStr {
        let path = self.auxiliary(granule_abi::process::AT_EXECFN).expect("a path");
        // SAFETY: the kernel put it there, and nothing changes it.
        unsafe { CStr::from_ptr(path as *const core::ffi::c_char) }
    }

    /// SP at the first instruction.
    pub fn stack_pointer(&self) -> u64 {
        self.stack.addr() as u64
    }

    fn environment_start(&self) -> *const u64 {
        self.stack.wrapping_add(self.count() + 2)
    }
}

/// The strings of an array of pointers, up to a null pointer.
///
/// # Safety
/// It is such an array, and it and the strings are never changed.
unsafe fn strings(mut pointer: *const u64) -> impl Iterator<Item = &'static str> {
    core::iter::from_fn(move || {
        // SAFETY: by the caller's contract this is an element, and the null pointer is not behind us.
        let string = unsafe { *pointer };
        if string == 0 {
            return None;
        }
        pointer = pointer.wrapping_add(1);
        // SAFETY: by the caller's contract a string with a final zero that stays as it is.
        let string = unsafe { CStr::from_ptr(string as *const core::ffi::c_char) };
        Some(string.to_str().expect("an argument in UTF-8"))
    })
}

#[cfg(target_os = "none")]
mod target {
    use super::Start;
    use crate::process;

    core::arch::global_asm!(
        ".section .text._start, \"ax\"",
        ".global _start",
        ".type _start, %function",
        "_start:",
        "mov x29, #0",
        "mov x30, #0",
        "mov x0, sp",
        "adrp x1, __ehdr_start",
        "add x1, x1, :lo12:__ehdr_start",
        "bl {relocate}",
        "mov x0, sp",
        "bl {start}",
        "udf #0",
        ".size _start, . - _start",
        ".text",
        relocate = sym relocate,
        start = sym start,
    );

    unsafe extern "Rust" {
        /// The program's, by [`crate::entry!`].
        safe fn user_main(start: Start) -> u8;
    }

    extern "C" fn start(stack: *const u64) -> ! {
        process::exit_group(user_main(Start { stack }))
    }

    const PT_DYNAMIC: u32 = 2;
    const DT_RELR: u64 = 36;
    const DT_RELRSZ: u64 = 35;

    /// Adds the load address to each word that holds an address, where the program was linked to run anywhere (RELR:
    /// even entries are addresses of words, odd ones bit maps of the 63 words that follow).
    ///
    /// Runs before anything is relocated: it may use no constant that holds an address.
    extern "C" fn relocate(_stack: *const u64, header: *const u8) {
        // SAFETY: the linker puts the ELF header there and the program headers where it has them; PT_DYNAMIC is there
        // in programs that run anywhere only, whose link address is 0, and its entries are in the image.
        unsafe {
            let base = header as u64;
            let table = header.add(*header.add(32).cast::<u64>() as usize);
            let count = *header.add(56).cast::<u16>();
            let mut segment = table;
            for _ in 0..count {
                if *segment.cast::<u32>() == PT_DYNAMIC {
                    apply(base, (base + *segment.add(16).cast::<u64>()) as *const u64);
                }
                segment = segment.add(56);
            }
        }
    }

    /// # Safety
    /// The dynamic section of a program linked at 0 and loaded at `base`, not relocated yet.
    unsafe fn apply(base: u64, mut dynamic: *const u64) {
        let (mut entries, mut bytes) = (0, 0);
        // SAFETY: by the caller's contract these are its pairs, up to key 0, and RELR names words of the image.
        unsafe {
            while *dynamic != 0 {
                match *dynamic {
                    DT_RELR => entries = base + *dynamic.add(1),
                    DT_RELRSZ => bytes = *dynamic.add(1),
                    _ => {}
                }
                dynamic = dynamic.add(2);
            }
            let mut word = core::ptr::null_mut::<u64>();
            for index in 0..bytes / 8 {
                let entry = *(entries as *const u64).add(index as usize);
                if entry & 1 == 0 {
                    word = (base + entry) as *mut u64;
                    *word += base;
                    word = word.add(1);
                } else {
                    for bit in 0..63 {
                        if entry >> (bit + 1) & 1 != 0 {
                            *word.add(bit) += base;
                        }
                    }
                    word = word.add(63);
                }
            }
        }
    }
}
