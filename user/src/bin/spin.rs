//! Never ends by itself: with an argument it computes, without one it sleeps.

#![cfg_attr(target_os = "none", no_std, no_main)]

use granule_user::{Start, entry, time};

entry!(run);

fn run(start: Start) -> u8 {
    let computes = start.arguments().nth(1).is_some();
    loop {
        if computes {
            core::hint::spin_loop();
        } else if time::sleep(1_000_000_000).is_err() {
            return 1;
        }
    }
}
