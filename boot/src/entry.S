// From the loader's jump to the first Rust function, on the boot CPU and on every other.
//
// Entered at EL2 or EL1 with the MMU off, at the start of any page of 4 KiB, of which Linux's arm64 boot protocol has
// those at multiples of 2 MiB. In order:
//
//   drop_to_el1     (granule_arch::el2) EL2: all that EL2 could withhold is granted or switched off, then EL1
//   build_tables    boot CPU: the image by pages with final permissions, the fixmap, the identity page
//   configure_el1   MAIR, TCR, TTBRs and all else that a previous stage may have left, from this CPU's ID registers
//   turn_on         (granule_arch::mmu) the one page of code that lies at the same address under both maps
//   primary_high    where the image is mapped: vectors, stack, bss, `kernel_slide`, relocation, `kernel_main`
//   secondary_high  where the image is mapped: the CPU's record, found by its affinity, with its entry point
//
// Rules. With the MMU off: PC-relative addresses only, no stack, nothing exclusive or unaligned (all data accesses are
// Device-nGnRnE). A register field is written, never modified: what was in it is not ours. No page is writable and
// executable, at no time. Numbers that Rust knows too come from there, as operands in braces: see entry.rs.
//
// Registers that live through all of it:
//   x20  boot CPU: x0 as entered
//   x21  exception level at the entry
//   x22  CNTVCT_EL0
//   x23  physical address of the image
//   x26  SCTLR_EL1 with the MMU on
//   x27  virtual address of the image: IMAGE_BASE plus the slide
//   x28  where it continues with the MMU on
//
// Arm ARM: D1.3 (exception levels), D5 and D8 (translation), D7.5 (caches), D24 (registers).

// One definition for the linker script as well.
    .globl  IMAGE_BASE
    .set    IMAGE_BASE, {IMAGE_BASE}
    .globl  BOOT_STACK_SIZE
    .set    BOOT_STACK_SIZE, {BOOT_STACK_SIZE}
    .globl  EARLY_MAP_SIZE
    .set    EARLY_MAP_SIZE, {EARLY_MAP_TABLES} * 0x200000

// ---------------------------------------------------------------- tables, zeroed by build_tables

    .macro  table name, count=1
\name:
    .space  0x1000 * \count
    .endm

    .section .early_tables, "aw", @nobits
    .balign 0x1000
    table   root
    table   image_level1                    // 512 GiB: the image's GiB and the fixmap's
    table   image_level2
    table   image_level3, {EARLY_MAP_TABLES} // adjacent, so that they are one array of pages
    table   fixmap_level2
    table   fixmap_level3
    table   identity_root
    table   identity_level1
    table   identity_level2
    table   identity_level3

// ---------------------------------------------------------------- macros

// A 64-bit constant, without a literal pool: four instructions that need no memory.
    .macro  constant register, value
    movz    \register, #((\value) & 0xffff)
    movk    \register, #(((\value) >> 16) & 0xffff), lsl #16
    movk    \register, #(((\value) >> 32) & 0xffff), lsl #32
    movk    \register, #(((\value) >> 48) & 0xffff), lsl #48
    .endm

// A four-bit field of an ID register.
    .macro  id_field output, register, shift
    mrs     \output, \register
    ubfx    \output, \output, #\shift, #4
    .endm

// The address of a symbol, physical or virtual as the PC is.
    .macro  address register, symbol
    adrp    \register, \symbol
    add     \register, \register, :lo12:\symbol
    .endm

// The virtual address of a symbol while the PC is physical.
    .macro  high_address register, symbol
    address \register, \symbol
    sub     \register, \register, x23
    add     \register, \register, x27
    .endm

// The physical address of a page-aligned symbol while the PC is virtual.
    .macro  physical_page register, symbol
    adrp    \register, \symbol
    sub     \register, \register, x27
    add     \register, \register, x23
    .endm

// x27, and x23 while the PC is physical.
    .macro  find_image
    adrp    x23, __image_start
    ldr     x9, [x23, #{SLIDE}]
    constant x27, {IMAGE_BASE}
    add     x27, x27, x9
    .endm

// Drops the lines of the early tables from every cache, to the point of coherency. Clobbers x9 to x11.
    .macro  invalidate_tables
    mrs     x9, ctr_el0
    ubfx    x9, x9, #{CTR_DMINLINE}, #4
    mov     x10, #4
    lsl     x9, x10, x9
    adrp    x10, __early_tables_start
    adrp    x11, __early_tables_end
1:  dc      ivac, x10
    add     x10, x10, x9
    cmp     x10, x11
    b.lo    1b
    dsb     sy
    .endm

// parent[index of address at this level] = child. Clobbers x9 to x11.
    .macro  link_table parent, address, shift, child, descriptor
    adrp    x9, \parent
    adrp    x10, \child
    constant x11, \descriptor
    orr     x10, x10, x11
    ubfx    x11, \address, #\shift, #9
    str     x10, [x9, x11, lsl #3]
    .endm

// Writes a register if the field of the ID register says that there is one: neither 0 nor 0xf, which is another's; and if
// bit 4 of `unless` is clear, where there is such a register: a higher exception level keeps it for itself. Clobbers x0.
    .macro  close register, value, id, shift, unless
    id_field x0, \id, \shift
    cbz     x0, 8f
    cmp     x0, #0xf
    b.eq    8f
    .ifnb   \unless
    mrs     x0, \unless
    tbnz    x0, #4, 8f
    .endif
    mov     x0, #\value
    msr     \register, x0
8:
    .endm

// The image's pages from one symbol up to another, with these attributes. Clobbers x9 to x13.
    .macro  map_pages start, end, attributes
    adrp    x9, \start
    adrp    x10, \end
    constant x11, \attributes
    adrp    x12, image_level3
    sub     x13, x9, x23
    add     x12, x12, x13, lsr #9           // one entry of 8 bytes for each 4096
1:  cmp     x9, x10
    b.hs    2f
    orr     x13, x9, x11
    str     x13, [x12], #8
    add     x9, x9, #0x1000
    b       1b
2:
    .endm

// To EL1 from the level of the entry, which x21 has then; at EL3, a loader's mistake, to \at_el3. SCTLR_EL1 has the MMU
// off, which is not known of a CPU that was entered at EL1. Clobbers x0 to x3.
    .macro  enter_el1 at_el3
    adr     x0, parked_vectors
    bl      {DROP_TO_EL1}
    mov     x21, x0
    cmp     x21, #3
    b.eq    \at_el3
    constant x0, {SCTLR_EL1_MMU_OFF}
    msr     sctlr_el1, x0
    isb
    .endm

// Zeroes the pages from x0 up to x1.
    .macro  zero_pages
1:  cmp     x0, x1
    b.hs    2f
    .rept   16
    stp     xzr, xzr, [x0], #16
    .endr
    b       1b
2:
    .endm

// Gives this CPU its struct and its vectors, by the present address of the image. Clobbers x0.
    .macro  use_image
    address x0, {BOOT_CPU}
    msr     tpidr_el1, x0
    address x0, exception_vectors
    msr     vbar_el1, x0
    .endm

// ---------------------------------------------------------------- the header of an arm64 Image

    .section .head.text, "ax"
    .globl  _start
_start:
    add     x13, x18, #0x16                 // no effect; its first bytes are "MZ", as PE/COFF has them
    b       primary_entry
    .quad   0                               // text_offset: from a 2 MiB aligned address
    .quad   __image_size                    // all that must be free, bss included
    .quad   0b1010                          // little endian, 4 KiB pages, anywhere in memory
    .quad   {LOG} - _start                  // reserved; here: where the log is, from the image's start on
    .quad   __slide                         // reserved; here: from IMAGE_BASE to the image; start::slide writes it
    .quad   0
    .ascii  "ARM\x64"
    .long   0                               // offset of the PE headers: `./x build` adds them, and the EFI stub
    .space  {PE_HEADERS}

// ---------------------------------------------------------------- entries, MMU off

primary_entry:
    msr     daifset, #0xf
    mov     x20, x0
    enter_el1 refuse
    mrs     x22, cntvct_el0                 // not earlier: CNTVOFF_EL2 may have hidden the real count
    find_image
    bl      build_tables
    high_address x28, primary_high
    bl      configure_el1
    mov     x0, x26
    mov     x30, x28
    b       {TURN_ON}                       // returns to x28

    .globl  secondary_entry
secondary_entry:
    msr     daifset, #0xf
    enter_el1 park                          // the log is the running kernel's: the boot CPU's warning names this one
    find_image
    high_address x28, secondary_high
    bl      configure_el1
    mov     x0, x26
    mov     x30, x28
    b       {TURN_ON}                       // returns to x28

// Fills the early tables. Clobbers x0, x1 and x9 to x14.
//
// They are written past the caches and read through them, so their lines are dropped twice: before, lest a dirty line
// of the previous stage be evicted over what we write; after, lest a line fetched by speculation hide it.
build_tables:
    invalidate_tables
    adrp    x0, __early_tables_start
    adrp    x1, __early_tables_end
    zero_pages

    // __boot_guard lies between the last two ranges and stays unmapped.
    map_pages __text_start, __text_end, {PAGE_TEXT}
    map_pages __rodata_start, __rodata_end, {PAGE_RODATA}
    map_pages __relro_start, __boot_guard, {PAGE_DATA}
    map_pages __boot_stack_start, __image_end, {PAGE_DATA}

    // A level 3 table for each 2 MiB of the image. Those past the text allow no execution below them.
    adrp    x9, image_level2
    ubfx    x10, x27, #21, #9
    add     x9, x9, x10, lsl #3
    adrp    x10, image_level3
    mov     x11, x23
    adrp    x12, __text_end
    adrp    x13, __image_end
2:  constant x14, {TABLE}
    cmp     x11, x12
    b.lo    3f
    constant x14, {TABLE_PXN}
3:  orr     x14, x14, x10
    str     x14, [x9], #8
    add     x10, x10, #0x1000
    add     x11, x11, #0x200000
    cmp     x11, x13
    b.lo    2b

    link_table root, x27, 39, image_level1, {TABLE}
    link_table image_level1, x27, 30, image_level2, {TABLE}
    constant x12, {FIXMAP_BASE}
    link_table image_level1, x12, 30, fixmap_level2, {TABLE_PXN}
    link_table fixmap_level2, x12, 21, fixmap_level3, {TABLE_PXN}

    adrp    x12, __idmap_start
    link_table identity_root, x12, 39, identity_level1, {TABLE}
    link_table identity_level1, x12, 30, identity_level2, {TABLE}
    link_table identity_level2, x12, 21, identity_level3, {TABLE}
    link_table identity_level3, x12, 12, __idmap_start, {PAGE_TEXT}

    dmb     sy
    invalidate_tables
    ret

// Sets every EL1 register that decides how this CPU runs but the one that turns the MMU on: that is left in x26.
// Clobbers x0 to x3 and x24.
configure_el1:
    msr     spsel, #1
    constant x0, {CPACR_EL1}
    msr     cpacr_el1, x0
    msr     contextidr_el1, xzr
    msr     tpidr_el0, xzr
    msr     tpidrro_el0, xzr
    msr     sp_el0, xzr
    address x0, parked_vectors
    msr     vbar_el1, x0

    close_registers                         // the table of closed.rs

    // The memory types, and the allocation tags of one of them.
    constant x26, {SCTLR_EL1_MMU_ON}
    constant x1, {MAIR}
    id_field x0, id_aa64pfr1_el1, {PFR1_MTE}
    cmp     x0, #2
    b.lo    2f
    constant x1, {MAIR_MTE}
    constant x2, {SCTLR_TAGS}
    orr     x26, x26, x2
    constant x2, {GCR_EL1}
    msr     S3_0_C1_C0_6, x2                // GCR_EL1
    mrs     x2, cntvct_el0
    orr     x2, x2, #1                      // with a seed of zero IRG would find the same tag for ever
    ubfiz   x2, x2, #{RGSR_SEED}, #16
    msr     S3_0_C1_C0_5, x2                // RGSR_EL1
    msr     S3_0_C5_C6_0, xzr               // TFSR_EL1
    msr     S3_0_C5_C6_1, xzr               // TFSRE0_EL1
2:  msr     mair_el1, x1

    // PACIASP and PACIBSP accept at EL0 what they accept under Linux.
    id_field x0, id_aa64pfr1_el1, {PFR1_BT}
    cbz     x0, 2f
    orr     x26, x26, #{SCTLR_BT0}

    // PAN from the start where it exists; where not, SPAN is RES1.
2:  id_field x0, id_aa64mmfr1_el1, {MMFR1_PAN}
    cbz     x0, 3f
    mov     x1, #{PSTATE_PAN}
    msr     S3_0_C4_C2_3, x1                // PAN
    cmp     x0, #3
    b.lo    4f
    mov     x1, #1
    orr     x26, x26, x1, lsl #{SCTLR_EPAN} // for pages that EL0 may only execute, too
    b       4f
3:  orr     x26, x26, #{SCTLR_SPAN}

    // IMPLEMENTATION DEFINED functionality is EL1's alone.
4:  id_field x0, id_aa64mmfr1_el1, {MMFR1_TIDCP1}
    cbz     x0, 4f
    orr     x26, x26, #{SCTLR_TIDCP}
4:  constant x0, {TCR_EL1}
    mov     x24, x30
    bl      {TCR_OF_THIS_CPU}
    mov     x30, x24
    tbz     x26, #{SCTLR_ATA_SHIFT}, 5f
    constant x1, {TCR_TAGS}
    orr     x0, x0, x1
5:  msr     tcr_el1, x0
    adrp    x0, root
    msr     ttbr1_el1, x0
    adrp    x0, identity_root
    msr     ttbr0_el1, x0

    // Event counter 0 counts instructions at EL1 and EL0 from here on, all others stand still.
    id_field x0, id_aa64dfr0_el1, {DFR0_PMUVER}
    sub     x1, x0, #1
    cmp     x1, #0xe
    b.hs    9f
    mov     x1, #-1
    msr     pmcntenclr_el0, x1
    msr     pmintenclr_el1, x1
    msr     pmovsclr_el0, x1
    mov     x1, #{PMCR}
    cmp     x0, #6                          // FEAT_PMUv3p5: event counters of 64 bits
    b.lo    8f
    orr     x1, x1, #{PMCR_LP}
8:  msr     pmcr_el0, x1
    mrs     x0, pmcr_el0
    ubfx    x0, x0, #{PMCR_N}, #5
    cbz     x0, 9f
    mov     x1, #{EVENT_INST_RETIRED}
    msr     pmevtyper0_el0, x1
    msr     pmevcntr0_el0, xzr
    mov     x1, #1
    msr     pmcntenset_el0, x1
9:  isb
    ret

// Of the one that is refused, the log tells: nothing else is there. Device memory, so that a debugger sees it.
refuse:
    address x0, {LOG}
    adr     x1, refused
    mov     x2, #(refused_end - refused)
    str     xzr, [x0]
    str     x2, [x0, #{LOG_END}]
    add     x0, x0, #{LOG_BYTES}
1:  ldrb    w3, [x1], #1
    strb    w3, [x0], #1
    subs    x2, x2, #1
    b.ne    1b
    dsb     sy

park:
    wfe
    b       park

refused:
    .ascii  "boot failed: entered at EL3; the loader must enter at EL2 or EL1\n"
refused_end:
    .balign 4

// From EL1 at EL2, by an HVC: `granule_arch::mmu::leave` has the MMU of EL1 off and continues here, at x4. Other exceptions
// park.
leave_el1:
    mrs     x5, esr_el2
    constant x6, {HVC_LEAVE_EL1}
    cmp     x5, x6
    b.ne    park
    br      x4

// For exceptions that have no handler yet, and for EL2 once it is empty. EL1 has no exceptions from below it before it has
// other vectors.
    .balign 0x800
parked_vectors:
    .rept   8
    .balign 0x80
    b       park
    .endr
    .balign 0x80
    b       leave_el1
    .rept   7
    .balign 0x80
    b       park
    .endr

// ---------------------------------------------------------------- where the image is mapped, MMU on

    .text
primary_high:
    use_image
    adrp    x0, __boot_stack_end
    mov     sp, x0
    mov     x29, xzr                        // the end of every backtrace

    adrp    x0, __bss_start
    adrp    x1, __bss_end
    zero_pages

    sub     sp, sp, #{BOOT_INFO_SPACE}
    str     x20, [sp, #{INFO_DEVICE_TREE}]
    str     x23, [sp, #{INFO_IMAGE_START}]
    physical_page x0, __image_end
    str     x0, [sp, #{INFO_IMAGE_END}]
    str     x21, [sp, #{INFO_ENTRY_LEVEL}]
    str     x22, [sp, #{INFO_ENTRY_COUNT}]
    physical_page x0, root
    str     x0, [sp, #{INFO_ROOT_TABLE}]
    physical_page x0, identity_root
    str     x0, [sp, #{INFO_IDENTITY_ROOT}]
    physical_page x0, fixmap_level3
    str     x0, [sp, #{INFO_FIXMAP_TABLE}]
    address x0, secondary_entry
    sub     x0, x0, x27
    add     x0, x0, x23
    str     x0, [sp, #{INFO_SECONDARY_ENTRY}]
    str     xzr, [sp, #{INFO_IS_TREE_SOUND}]

    // Where the header has a slide, it stays.
    constant x0, {IMAGE_BASE}
    subs    x6, x27, x0
    b.ne    relocate
    mov     x0, sp
    bl      kernel_slide
    cbz     x0, protect
    mov     x6, x0

    // Links the level 3 tables once more: a slide is no shorter than the image, so nothing valid changes.
    adrp    x1, image_level2                // IMAGE_BASE is the first address of its GiB
    add     x2, x1, x6, lsr #18             // one entry of 8 bytes for each 2 MiB
    adrp    x3, __image_end
    sub     x3, x3, x27
    add     x3, x3, #0x1ff, lsl #12
    lsr     x3, x3, #21
    mov     x5, x3
1:  ldr     x4, [x1], #8
    str     x4, [x2], #8
    subs    x5, x5, #1
    b.ne    1b
    dsb     ishst
    isb
    adr     x0, 2f
    add     x0, x0, x6
    br      x0

    // At the new address. The old one goes with the invalidation below.
2:  add     x27, x27, x6
    add     sp, sp, x6
    use_image
    isb
    adrp    x1, image_level2
3:  str     xzr, [x1], #8
    subs    x3, x3, #1
    b.ne    3b

    // RELR: an address followed by bitmaps of the 63 words after it; x6 is added to each.
relocate:
    address x0, __relr_start
    address x1, __relr_end
1:  cmp     x0, x1
    b.hs    protect
    ldr     x3, [x0], #8
    tbnz    x3, #0, 2f
    add     x2, x3, x6
    ldr     x4, [x2]
    add     x4, x4, x6
    str     x4, [x2], #8
    b       1b
2:  lsr     x3, x3, #1
    rbit    x3, x3                          // the first word is the topmost bit
3:  cbz     x3, 4f
    clz     x5, x3
    ldr     x4, [x2, x5, lsl #3]
    add     x4, x4, x6
    str     x4, [x2, x5, lsl #3]
    mov     x4, #(1 << 63)
    lsr     x4, x4, x5
    bic     x3, x3, x4
    b       3b
4:  add     x2, x2, #(63 * 8)
    b       1b

    // The data with relocated pointers is constant now: a narrowing of live entries, so invalidate.
protect:
    adrp    x0, __relro_start
    adrp    x1, __relro_end
    sub     x2, x0, x27
    adrp    x3, image_level3
    add     x3, x3, x2, lsr #9
    constant x5, {PAGE_DATA} ^ {PAGE_RODATA}
7:  cmp     x0, x1
    b.hs    8f
    ldr     x4, [x3]
    eor     x4, x4, x5
    str     x4, [x3], #8
    add     x0, x0, #0x1000
    b       7b
8:  dsb     ishst
    tlbi    vmalle1
    dsb     nsh
    isb

    mov     x0, sp
    mov     x30, xzr
    b       kernel_main

// No register has an argument: a spin table and PSCI 0.1 hand none over. A CPU without a record waits for one, as several
// may leave a spin table at once where they have one release address; an event follows each record.
secondary_high:
    mrs     x1, mpidr_el1
    constant x2, {AFFINITY}
    and     x1, x1, x2
1:  address x20, {SECONDARY_BOOTS}
    mov     x3, #{SECONDARIES}
2:  add     x0, x20, #{SECONDARY_ENTRY}
    ldar    x0, [x0]                        // what is in the record is read after it
    cbz     x0, 3f
    ldr     x0, [x20, #{SECONDARY_MPIDR}]
    cmp     x0, x1
    b.eq    4f
3:  add     x20, x20, #{SECONDARY_SIZE}
    subs    x3, x3, #1
    b.ne    2b
    wfe
    b       1b

4:  ldr     x0, [x20, #{SECONDARY_STACK_TOP}]
    mov     sp, x0
    ldr     x0, [x20, #{SECONDARY_CPU}]
    msr     tpidr_el1, x0
    address x1, exception_vectors
    msr     vbar_el1, x1
    isb
    ldr     x1, [x20, #{SECONDARY_ENTRY}]
    mov     x29, xzr
    mov     x30, xzr
    br      x1
