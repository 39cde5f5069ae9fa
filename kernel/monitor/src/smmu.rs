//! Commands that show the SMMU: its features, the treatment of each stream, refused transactions, commands.

use super::parse::{Args, Keyword};
use super::{Command, Failure, Refusal, Session};
use granule::iommu::{self, Iommu, NotifyMode};

pub(super) const COMMANDS: &[Command] = &[Command {
    name: "smmu",
    words: "dump|events|stats",
    help: "features and streams; the last refused transactions; counters",
    run: smmu,
    complete: |place, take| {
        if place == 0 {
            SHOWN.iter().for_each(|(keyword, _)| take(keyword));
        }
    },
}];

#[derive(Clone, Copy)]
enum Shown {
    Dump,
    Events,
    Stats,
}

const SHOWN: &[Keyword<Shown>] = &[("dump", Shown::Dump), ("events", Shown::Events), ("stats", Shown::Stats)];

fn smmu<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let shown = args.keyword("WHAT", "dump|events|stats", SHOWN)?;
    args.finish()?;
    let mut number = 0;
    for iommu in iommu::iommus() {
        // A single SMMU has no heading.
        if iommu::iommus().nth(1).is_some() {
            writeln!(session, "SMMU {number}:");
        }
        match shown {
            Shown::Dump => dump(session, iommu),
            Shown::Events => events(session, iommu),
            Shown::Stats => stats(session, iommu),
        }
        number += 1;
    }
    if number == 0 { Err(Refusal::NoSmmu.into()) } else { Ok(()) }
}

fn dump(session: &mut Session<'_>, iommu: &Iommu) {
    writeln!(session, "{}", iommu.smmu().features());
    let raw = iommu.smmu().features().raw;
    for (name, value) in ["IDR0", "IDR1", "IDR2", "IDR3", "IDR4", "IDR5", "IIDR", "AIDR"].iter().zip(raw) {
        writeln!(session, "{name:<6} {value:#010x}");
    }
    let notify_mode = match iommu.notify_mode() {
        NotifyMode::Tlb => "with the CPUs' TLBs",
        NotifyMode::Events => "by the events around each change",
    };
    writeln!(session, "bound spaces: invalidated {notify_mode}");
    iommu.for_each_stream(|stream, entry, context| match context {
        Some(context) => writeln!(session, "stream {stream:#06x}  {entry}; {context}"),
        None => writeln!(session, "stream {stream:#06x}  {entry}"),
    });
    iommu.for_each_device(|device| {
        let (asid, frames) = (device.asid, device.table_frames);
        write!(session, "device {:#06x}  own tables: asid {asid}, {frames} frames", device.stream);
        write!(session, "; {} pages in common with its driver", device.coherent_pages);
        match device.bound {
            Some(asid) => writeln!(session, "; bound: asid {asid}"),
            None => writeln!(session, "; not bound"),
        }
    });
    writeln!(session, "all other streams: abort");
}

fn events(session: &mut Session<'_>, iommu: &Iommu) {
    let mut any = false;
    iommu.for_each_recent(|event| {
        any = true;
        writeln!(session, "{event}");
    });
    if !any {
        writeln!(session, "no transaction was refused so far");
    }
}

fn stats(session: &mut Session<'_>, iommu: &Iommu) {
    let commands = iommu.smmu().stats();
    writeln!(session, "commands  {} in {} calls, {} waits for room", commands.commands, commands.calls, commands.full);
    writeln!(session, "errors    {} served, {} illegal commands", commands.errors, commands.illegal);
    let faults = iommu.fault_stats();
    writeln!(
        session,
        "events    {}, {} of unknown streams; lost {} times, {} storms",
        faults.events, faults.unknown_streams, faults.losses, faults.storms
    );
    writeln!(session, "faults    {} served, {} that could not be", faults.served, faults.failed);
}
