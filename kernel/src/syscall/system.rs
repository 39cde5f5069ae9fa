//! Calls that ask what this is, and for numbers that cannot be foreseen.

use granule_abi::process::UtsName;
use granule_arch::addr::{PAGE_SIZE, VirtAddr};

use super::{Answer, Call};
use crate::errno::Errno;
use crate::random;
use crate::sched::Work;
use crate::smp::this_cpu;
use crate::uaccess;

/// What `uname` says. The release is Linux's whose interface this is: C libraries compare it.
const NAMES: [&str; 6] =
    ["Linux", "granule", "7.2.0-granule", concat!("Granule ", env!("CARGO_PKG_VERSION")), "aarch64", "(none)"];

pub(super) fn uname(call: &mut Call<'_>) -> Answer {
    const FIELD: usize = size_of::<UtsName>() / NAMES.len();
    let mut bytes = [0; size_of::<UtsName>()];
    for (field, name) in bytes.chunks_exact_mut(FIELD).zip(NAMES) {
        field[..name.len()].copy_from_slice(name.as_bytes());
    }
    uaccess::copy_to_user(call.address::<0>(), &bytes)?;
    Ok(0)
}

pub(super) fn getcpu(call: &mut Call<'_>) -> Answer {
    let (cpu, node) = (call.address::<0>(), call.address::<1>());
    if cpu.0 != 0 {
        uaccess::copy_to_user(cpu, &this_cpu().id.0.to_le_bytes())?;
    }
    if node.0 != 0 {
        uaccess::clear_user(node, 4)?;
    }
    Ok(0)
}

pub(super) fn getrandom(call: &mut Call<'_>) -> Answer {
    /// `GRND_NONBLOCK`, `GRND_RANDOM`, `GRND_INSECURE`.
    const FLAGS: u64 = 0b111;
    let (to, bytes, flags) = (call.address::<0>(), call.argument::<1>(), call.argument::<2>());
    if flags & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let bytes = bytes.min(i32::MAX as u64);
    let (mut done, mut stream, mut random) = (0, random::stream(this_cpu()), [0; 64]);
    while done < bytes {
        stream.fill(&mut random);
        let piece = (bytes - done).min(random.len() as u64);
        if let Err(errno) = uaccess::copy_to_user(VirtAddr(to.0.wrapping_add(done)), &random[..piece as usize]) {
            return if done == 0 { Err(errno) } else { Ok(done) };
        }
        done += piece;
        // As on Linux: at the end of each page.
        if done.is_multiple_of(PAGE_SIZE as u64) && call.thread.has(Work::SIGNAL) {
            break;
        }
    }
    Ok(done)
}
