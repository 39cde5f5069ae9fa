//! The kernel with its monitor and the measure of [`granule::latency`] compiled in: the source is the shipped kernel's.

#![cfg_attr(target_os = "none", no_std, no_main)]

granule_boot::entry!(granule::monitor::run);
