// From EL2 to EL1: the body of `drop_to_el1`, which documents it. The numbers in braces come from el2.rs.

    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    9f
    msr     vbar_el2, x0
    movz    x0, #({SCTLR_EL2} & 0xffff)
    movk    x0, #({SCTLR_EL2} >> 16), lsl #16
    msr     sctlr_el2, x0
    // The host regime of VHE goes with this write: E2H = TGE = 0. On a CPU whose E2H is RES1 it stays, and then
    // `sctlr_el1` means SCTLR_EL2, and three registers have another layout. Such a CPU says so by a negative
    // ID_AA64MMFR4_EL1.E2H0, or the bit reads as one; it need not do so before one is written.
    movz    x0, #({HCR} >> 48), lsl #48
    movk    x0, #(({HCR} >> 32) & 0xffff), lsl #32
    movk    x0, #(({HCR} >> 16) & 0xffff), lsl #16
    mrs     x1, S3_0_C0_C7_4            // ID_AA64MMFR4_EL1
    tbz     x1, #{E2H0_SIGN}, 0f
    orr     x0, x0, #(1 << {E2H})
0:  msr     hcr_el2, x0
    isb
    mrs     x0, hcr_el2
    movz    x1, #({SCTLR_EL1} & 0xffff)
    movk    x1, #({SCTLR_EL1} >> 16), lsl #16
    tbnz    x0, #{E2H}, 1f
    msr     sctlr_el1, x1
    mov     x2, #{CPTR}
    mov     x3, #{CNTHCTL}
    b       2f
1:  msr     S3_5_C1_C0_0, x1            // SCTLR_EL12
    mov     x2, #{CPTR_VHE}
    mov     x3, #{CNTHCTL_VHE}
2:  msr     cptr_el2, x2
    msr     cnthctl_el2, x3
    msr     cntvoff_el2, xzr
    msr     hstr_el2, xzr
    msr     vttbr_el2, xzr
    mov     x0, #{VTCR}
    msr     vtcr_el2, x0
    mrs     x0, midr_el1
    msr     vpidr_el2, x0
    mrs     x0, mpidr_el1
    msr     vmpidr_el2, x0
    // Debug and profiling: no traps; all event counters belong to EL1.
    mrs     x1, id_aa64dfr0_el1
    ubfx    x1, x1, #{PMUVER}, #4
    sub     x0, x1, #1
    cmp     x0, #0xe                    // 0: no PMU, 0xf: not the architected one
    mov     x0, #0
    b.hs    3f
    mrs     x0, pmcr_el0
    ubfx    x0, x0, #{PMCR_N}, #5
    // The profiling buffer is EL1's as well, or closing PMSCR_EL1 would trap.
3:  orr     x0, x0, #{MDCR_E2PB_EL1}
    msr     mdcr_el2, x0                // HPMN
    // The GIC's system registers, where there are any and EL3 lets us have them.
    mrs     x0, id_aa64pfr0_el1
    ubfx    x0, x0, #{GIC}, #4
    cbz     x0, 4f
    mov     x0, #{ICC_SRE}
    msr     S3_4_C12_C9_5, x0           // ICC_SRE_EL2
    isb
    mrs     x0, S3_4_C12_C9_5
    tbz     x0, #0, 4f
    msr     S3_4_C12_C11_0, xzr         // ICH_HCR_EL2
    // HCRX_EL2. Fields of absent features stay zero.
4:  mrs     x0, id_aa64mmfr1_el1
    ubfx    x0, x0, #{HCX}, #4
    cbz     x0, 7f
    mov     x0, #0
    mrs     x1, S3_0_C0_C6_2            // ID_AA64ISAR2_EL1
    ubfx    x1, x1, #{MOPS}, #4
    cbz     x1, 5f
    orr     x0, x0, #{MSCEN}
5:  mrs     x2, S3_0_C0_C7_3            // ID_AA64MMFR3_EL1
    ubfx    x1, x2, #{TCRX}, #4
    cbz     x1, 6f
    orr     x0, x0, #{TCR2EN}
6:  ubfx    x1, x2, #{SCTLRX}, #4
    cbz     x1, 6f
    orr     x0, x0, #{SCTLR2EN}
6:  msr     S3_4_C1_C2_2, x0
7:  mrs     x0, id_aa64mmfr0_el1
    ubfx    x0, x0, #{FGT}, #4
    cbz     x0, 8f
    msr     S3_4_C1_C1_4, xzr           // HFGRTR_EL2
    msr     S3_4_C1_C1_5, xzr           // HFGWTR_EL2
    msr     S3_4_C1_C1_6, xzr           // HFGITR_EL2
    msr     S3_4_C3_C1_4, xzr           // HDFGRTR_EL2
    msr     S3_4_C3_C1_5, xzr           // HDFGWTR_EL2
    mrs     x1, id_aa64pfr0_el1
    ubfx    x1, x1, #{AMU}, #4
    cbz     x1, 7f
    msr     S3_4_C3_C1_6, xzr           // HAFGRTR_EL2
7:  cmp     x0, #2
    b.lo    8f
    msr     S3_4_C3_C1_2, xzr           // HFGRTR2_EL2
    msr     S3_4_C3_C1_3, xzr           // HFGWTR2_EL2
    msr     S3_4_C3_C1_7, xzr           // HFGITR2_EL2
    msr     S3_4_C3_C1_0, xzr           // HDFGRTR2_EL2
    msr     S3_4_C3_C1_1, xzr           // HDFGWTR2_EL2
8:  tlbi    alle1                       // every VMID: EL1's is 0, and it may have been used
    tlbi    alle2
    dsb     nsh
    mov     x0, sp
    msr     sp_el1, x0
    mov     x0, #{SPSR}
    msr     spsr_el2, x0
    msr     elr_el2, x30
    mov     x0, #2
    isb
    eret
    dsb     nsh
    isb
9:  lsr     x0, x1, #2
    ret
