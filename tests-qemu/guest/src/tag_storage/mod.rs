//! The region of tag storage of machines.toml.

use granule::kernel;

use crate::harness::{Test, target_test};

target_test!(the_region_is_at_the_end_of_memory, needs("tag-storage"));
fn the_region_is_at_the_end_of_memory(t: &mut Test) {
    let platform = kernel().platform;
    t.equal("regions", platform.tag_storage.len(), 1);
    t.equal("banks of memory", platform.memory.len(), 1);
    let (Some(region), Some(memory)) = (platform.tag_storage.first(), platform.memory.first()) else { return };
    t.equal("tags of", region.tagged, *memory);
    t.equal("end", region.storage.end(), memory.end());
    t.equal("bytes", region.storage.size(), memory.size() / 32);
    t.equal("bytes of a block", region.block_bytes, 4096);
}
