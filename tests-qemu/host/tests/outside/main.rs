//! Tests of a whole machine by what is seen from outside. One program: it is linked once, and each test runs in a process
//! of its own.

mod acpi;
mod address_spaces;
mod against_linux;
mod benches;
mod boards;
mod boots;
mod demos;
mod device_trees;
mod devices;
mod examples;
mod guarded_heap;
mod heap_tags;
mod kernels;
mod lab;
mod latency;
mod linux_selftests;
mod loads;
mod misbehaving_guests;
mod newest_qemu;
mod others;
mod page_tables;
mod previous_stage;
mod programs;
mod randomness;
mod readme;
mod reports;
mod scripts;
mod smmu_trace;
mod wire;
