//! The kernel with its monitor.

#![cfg_attr(target_os = "none", no_std, no_main)]

granule_boot::entry!(granule_monitor::run);
