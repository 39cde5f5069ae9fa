//! The suite `tlb`: entries that a pass over 2 MiB fills in a modelled TLB, and descriptors that its walks read.
//!
//! QEMU's plugin `tests-qemu/plugin/tlb.c` counts in one boot of the bench image. The right counts are known
//! ([`expected`]), and a boot that counts anything else fails.

use anyhow::{Context, Result, ensure};
use granule_protocol::{TlbLeaf, TlbOrder, TlbPass};
use serde::{Deserialize, Serialize};

use super::counted::{Counted, numbers};
use super::table::columns;

/// The suite's name, and how the names of its rows begin.
pub const SUITE: &str = "tlb";

/// A row: a pass.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TlbRow {
    /// The order of its reads, and the leaves.
    pub name: String,
    /// Reads of the program.
    pub accesses: u64,
    /// Entries that they filled.
    pub entries: u64,
    /// Descriptors that the walks read.
    pub descriptors: u64,
    /// Descriptors that the walks read with the walk cache.
    pub descriptors_cached: u64,
}

/// The name of a pass's row; `None`: it checks the model alone.
fn name(pass: TlbPass) -> Option<String> {
    let order = match pass.order {
        TlbOrder::InOrder => "in_order",
        TlbOrder::ScatteredPages => "scattered_pages",
        TlbOrder::ScatteredLines => "scattered_lines",
        TlbOrder::CheckFits | TlbOrder::CheckExceeds | TlbOrder::CheckRecent => return None,
    };
    let leaf = match pass.leaf {
        TlbLeaf::Page => "pages",
        TlbLeaf::Group => "groups",
        TlbLeaf::Block => "block",
    };
    Some(format!("{SUITE}/{order}/{leaf}"))
}

/// Accesses, entries, descriptors, and descriptors with the walk cache.
type Counts = [u64; 4];

/// The counts of a pass: an entry for each leaf, or for each read where more other leaves than there are entries come
/// between two reads of one; then a walk for each entry, with the cache a read of one descriptor after the first.
fn expected(pass: TlbPass) -> Counts {
    let (reads, leaves) = (pass.order.reads(), pass.order.span().div_ceil(pass.leaf.size()));
    let comes_back = matches!(pass.order, TlbOrder::ScatteredLines | TlbOrder::CheckExceeds);
    let entries = if comes_back && leaves > TlbPass::ENTRIES { reads } else { leaves };
    let levels = if pass.leaf == TlbLeaf::Block { 3 } else { 4 };
    [reads, entries, levels * entries, levels + entries - 1]
}

/// Holds what the plugin wrote, a line for each pass, against what is known, and makes rows of it.
fn rows(text: &str) -> Result<Vec<TlbRow>> {
    let mut counted = Vec::new();
    for line in text.lines() {
        let [number, accesses, entries, descriptors, cached] = numbers(line)?;
        counted.push((number, [accesses, entries, descriptors, cached]));
    }
    ensure!(counted.len() == TlbPass::all().count(), "there are {} passes", counted.len());
    let mut rows = Vec::new();
    for pass in TlbPass::all() {
        let found = counted.iter().find(|(number, _)| *number == pass.number());
        let (_, counts) = found.with_context(|| format!("{pass:?} is not there"))?;
        let wanted = expected(pass);
        ensure!(*counts == wanted, "{pass:?}: the plugin counts {counts:?}, and it must be {wanted:?}");
        let [accesses, entries, descriptors, descriptors_cached] = *counts;
        rows.extend(name(pass).map(|name| TlbRow { name, accesses, entries, descriptors, descriptors_cached }));
    }
    Ok(rows)
}

/// Counts all passes in one boot, of one CPU.
///
/// # Errors
/// When the boot does not end as it should, or the plugin counts anything but what is known.
pub fn measure(counted: &Counted<'_>) -> Result<Vec<TlbRow>> {
    let texts = counted.boot(1, "bench.tlb", &[], &format!(",entries={}", TlbPass::ENTRIES), &["out"])?;
    rows(&texts.concat())
}

/// The rows as a table to read.
pub fn table(rows: &[TlbRow]) -> String {
    let mut lines = vec![["row", "reads", "entries", "descriptors", "with a walk cache"].map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        let counts = [row.accesses, row.entries, row.descriptors, row.descriptors_cached];
        [row.name.clone()].into_iter().chain(counts.map(|count| count.to_string())).collect()
    }));
    columns(&format!("2 MiB, a TLB of {} entries: entries filled, descriptors read", TlbPass::ENTRIES), &lines)
}

#[cfg(test)]
mod tests {
    use super::{TlbLeaf, TlbOrder, TlbPass, expected, rows};

    /// Entries that a pass fills, by a list of leaves, the last used first.
    fn played(pass: TlbPass) -> u64 {
        let (mut list, mut filled) = (Vec::new(), 0);
        for nth in 0..pass.order.reads() {
            let leaf = pass.order.offset(nth) / pass.leaf.size();
            match list.iter().position(|other| *other == leaf) {
                Some(place) => _ = list.remove(place),
                None => filled += 1,
            }
            list.insert(0, leaf);
            list.truncate(TlbPass::ENTRIES as usize);
        }
        filled
    }

    #[test]
    fn what_is_expected_is_what_a_list_of_leaves_gives() {
        for pass in TlbPass::all() {
            assert_eq!(played(pass), expected(pass)[1], "{pass:?}");
        }
        let entries = |order| TlbLeaf::ALL.map(|leaf| expected(TlbPass { order, leaf })[1]);
        assert_eq!(entries(TlbOrder::InOrder), [512, 32, 1]);
        assert_eq!(entries(TlbOrder::ScatteredLines), [32768, 32, 1]);
        assert_eq!(expected(TlbPass { order: TlbOrder::InOrder, leaf: TlbLeaf::Page }), [32768, 512, 2048, 515]);
        assert_eq!(expected(TlbPass { order: TlbOrder::InOrder, leaf: TlbLeaf::Block }), [32768, 1, 3, 3]);
    }

    #[test]
    fn each_pass_reads_all_of_what_it_is_over() {
        for order in TlbOrder::ALL {
            let mut offsets: Vec<u64> = (0..order.reads()).map(|nth| order.offset(nth)).collect();
            offsets.sort_unstable();
            offsets.dedup();
            let is_of_lines = matches!(order, TlbOrder::InOrder | TlbOrder::ScatteredLines);
            let unit = if is_of_lines { 64 } else { TlbLeaf::Page.size() };
            assert_eq!(offsets.len() as u64, order.span() / unit, "{order:?}");
            assert!(offsets.iter().all(|offset| *offset < order.span()), "{order:?}");
        }
    }

    /// The output of an honest plugin, in the order of the guest's passes.
    fn honest() -> String {
        let line = |pass: TlbPass| {
            let [accesses, entries, descriptors, cached] = expected(pass);
            format!("{} {accesses} {entries} {descriptors} {cached}\n", pass.number())
        };
        let passes = TlbLeaf::ALL.into_iter().rev().flat_map(|leaf| TlbOrder::ALL.map(|order| TlbPass { order, leaf }));
        passes.map(line).collect()
    }

    #[test]
    fn a_plugin_that_miscounts_is_found() {
        let names: Vec<String> = rows(&honest()).unwrap().into_iter().map(|row| row.name).collect();
        assert_eq!(names.len(), 9);
        assert_eq!(names[..2], ["tlb/in_order/pages", "tlb/in_order/groups"]);
        for (right, wrong) in [(" 512 2048 515", " 511 2048 515"), (" 32 128 35", " 32 128 36"), ("32768 1 3", "0 1 3")]
        {
            assert!(honest().contains(right));
            let error = rows(&honest().replacen(right, wrong, 1)).unwrap_err().to_string();
            assert!(error.contains("and it must be"), "{error}");
        }
        let short: String = honest().lines().skip(1).map(|line| format!("{line}\n")).collect();
        for text in ["1 2 3\n", "1 2 3 4 x\n", "", &short, &format!("{short}{}\n", short.lines().next().unwrap())] {
            assert!(rows(text).is_err(), "{text}");
        }
    }
}
