// memcpy, memmove, memset, memcmp for Normal memory, any alignment.
//
// Three ways: pairs of registers, which every CPU has and which all begin with; DC ZVA for many zeros (Arm ARM C5.3.8);
// and the instructions of FEAT_MOPS, which take any length. The way is chosen at boot by patched branches, so a call asks
// nothing. Each is a function of its own as well, for the tests.
//
// No floating point registers: the kernel does not own them.

// A NOP that becomes a jump where all CPUs have what the identifier stands for: `patched_branch!` for assembly.
    .macro  patched_branch identifier, target
7:  nop
    .pushsection .alternatives, "a", @progbits
    .balign 4
    .long   7b - .
    .long   \target - .
    .short  \identifier
    .short  0
    .popsection
    .endm

// void *memcpy(x0 to, x1 from, x2 bytes); memmove is the same function.
//
// By pairs: up to 64 bytes all loads come before the first store, so any overlap is right. More are moved in blocks of 64,
// forwards or, where `to` lies inside the source, backwards; what is left over takes the short way.
    .section .text.memmove, "ax"
    .balign 64
    .globl  memcpy, memmove
    .type   memcpy, @function
    .type   memmove, @function
memcpy:
memmove:
    patched_branch {mops}, memmove_by_mops
    .globl  memmove_by_pairs
memmove_by_pairs:
    mov     x3, x0                      // moves; x0 is returned
    cmp     x2, #64
    b.hi    .Lmove_long
.Lmove_short:                           // 0 to 64 bytes
    add     x4, x1, x2                  // end of the source
    add     x5, x3, x2                  // end of the destination
    cmp     x2, #16
    b.lo    .Lmove_under_16
    ldp     x6, x7, [x1]
    ldp     x8, x9, [x4, #-16]
    cmp     x2, #32
    b.hi    1f
    stp     x6, x7, [x3]
    stp     x8, x9, [x5, #-16]
    ret
1:  ldp     x10, x11, [x1, #16]
    ldp     x12, x13, [x4, #-32]
    stp     x6, x7, [x3]
    stp     x10, x11, [x3, #16]
    stp     x12, x13, [x5, #-32]
    stp     x8, x9, [x5, #-16]
    ret
.Lmove_under_16:
    tbz     x2, #3, 2f
    ldr     x6, [x1]
    ldr     x7, [x4, #-8]
    str     x6, [x3]
    str     x7, [x5, #-8]
    ret
2:  tbz     x2, #2, 3f
    ldr     w6, [x1]
    ldr     w7, [x4, #-4]
    str     w6, [x3]
    str     w7, [x5, #-4]
    ret
3:  cbz     x2, 4f
    lsr     x8, x2, #1                  // 1 to 3 bytes: the first, the middle, the last
    ldrb    w6, [x1]
    ldrb    w7, [x1, x8]
    ldrb    w9, [x4, #-1]
    strb    w6, [x3]
    strb    w7, [x3, x8]
    strb    w9, [x5, #-1]
4:  ret

.Lmove_long:
    sub     x4, x0, x1
    cmp     x4, x2
    b.lo    .Lmove_backwards            // from <= to < from + bytes
1:  ldp     x6, x7, [x1]
    ldp     x8, x9, [x1, #16]
    ldp     x10, x11, [x1, #32]
    ldp     x12, x13, [x1, #48]
    add     x1, x1, #64
    stp     x6, x7, [x3]
    stp     x8, x9, [x3, #16]
    stp     x10, x11, [x3, #32]
    stp     x12, x13, [x3, #48]
    add     x3, x3, #64
    sub     x2, x2, #64
    cmp     x2, #64
    b.hi    1b
    b       .Lmove_short
.Lmove_backwards:
    add     x4, x1, x2
    add     x5, x3, x2
1:  ldp     x6, x7, [x4, #-16]
    ldp     x8, x9, [x4, #-32]
    ldp     x10, x11, [x4, #-48]
    ldp     x12, x13, [x4, #-64]!
    stp     x6, x7, [x5, #-16]
    stp     x8, x9, [x5, #-32]
    stp     x10, x11, [x5, #-48]
    stp     x12, x13, [x5, #-64]!
    sub     x2, x2, #64
    cmp     x2, #64
    b.hi    1b
    b       .Lmove_short
    .size   memmove, . - memmove

// CPYP, CPYM, CPYE finds the direction by itself. An interrupt between or inside them is no matter: what is left to do is in the
// registers and the flags, and EL1 continues on the same CPU.
    .arch_extension mops
    .globl  memmove_by_mops
    .type   memmove_by_mops, @function
memmove_by_mops:
    mov     x3, x0
    cpyp    [x3]!, [x1]!, x2!
    cpym    [x3]!, [x1]!, x2!
    cpye    [x3]!, [x1]!, x2!
    ret
    .size   memmove_by_mops, . - memmove_by_mops
    .arch_extension nomops

// void *memset(x0 to, w1 byte, x2 bytes)
    .section .text.memset, "ax"
    .balign 64
    .globl  memset, memset_by_pairs, memset_by_blocks
    .type   memset, @function
memset:
    patched_branch {mops}, memset_by_mops
    patched_branch {dc_zva}, memset_by_blocks
memset_by_pairs:
.Lset_by_pairs:
    and     x1, x1, #0xff
    mov     x3, #0x0101010101010101
    mul     x1, x1, x3
    add     x4, x0, x2                  // end
    cmp     x2, #16
    b.lo    2f
    mov     x3, x0
    cmp     x2, #64
    b.ls    1f
    sub     x5, x4, #64
0:  stp     x1, x1, [x3]
    stp     x1, x1, [x3, #16]
    stp     x1, x1, [x3, #32]
    stp     x1, x1, [x3, #48]
    add     x3, x3, #64
    cmp     x3, x5
    b.lo    0b
    stp     x1, x1, [x4, #-64]          // the last 64, some of them for the second time
    stp     x1, x1, [x4, #-48]
    stp     x1, x1, [x4, #-32]
    stp     x1, x1, [x4, #-16]
    ret
1:  stp     x1, x1, [x3]                // 16 to 64
    stp     x1, x1, [x4, #-16]
    cmp     x2, #32
    b.ls    4f
    stp     x1, x1, [x3, #16]
    stp     x1, x1, [x4, #-32]
    ret
2:  tbz     x2, #3, 3f                  // 0 to 15
    str     x1, [x0]
    str     x1, [x4, #-8]
    ret
3:  tbz     x2, #2, 5f
    str     w1, [x0]
    str     w1, [x4, #-4]
4:  ret
5:  cbz     x2, 4b
    lsr     x5, x2, #1
    strb    w1, [x0]
    strb    w1, [x0, x5]
    strb    w1, [x4, #-1]
    ret

// Zeros: pairs up to the first boundary, blocks, pairs again. The block is read each time because it costs one instruction; as
// all CPUs must have the same for the branch to be taken, any of them will do.
memset_by_blocks:
    tst     x1, #0xff
    b.ne    .Lset_by_pairs
    mrs     x5, dczid_el0
    and     x5, x5, #15                 // BS: the block is 4 << BS bytes
    mov     x6, #4
    lsl     x5, x6, x5
    cmp     x2, x5, lsl #1              // with two blocks' bytes there is a whole one in it
    ccmp    x5, #16, #0, hs             // and steps of 16 end at its boundary, or after it in the range
    b.lo    .Lset_by_pairs
    add     x4, x0, x2                  // end
    sub     x6, x5, #1
    bic     x7, x4, x6                  // end of the blocks
    add     x6, x0, x6
    neg     x8, x5
    and     x6, x6, x8                  // start of the blocks
    mov     x3, x0
    b       1f
0:  stp     xzr, xzr, [x3], #16
1:  cmp     x3, x6
    b.lo    0b
    sub     x8, x7, x5, lsl #4          // the last place for sixteen
    b       3f
2:  .rept   16
    dc      zva, x6
    add     x6, x6, x5
    .endr
3:  cmp     x6, x8
    b.ls    2b
    b       5f
4:  dc      zva, x6
    add     x6, x6, x5
5:  cmp     x6, x7
    b.lo    4b
    sub     x4, x4, #16
    b       7f
6:  stp     xzr, xzr, [x6], #16
7:  cmp     x6, x4
    b.lo    6b
    stp     xzr, xzr, [x4]              // the last 16, some of them for the second time
    ret
    .size   memset, . - memset

    .arch_extension mops
    .globl  memset_by_mops
    .type   memset_by_mops, @function
memset_by_mops:
    mov     x3, x0
    setp    [x3]!, x2!, x1
    setm    [x3]!, x2!, x1
    sete    [x3]!, x2!, x1
    ret
    .size   memset_by_mops, . - memset_by_mops
    .arch_extension nomops

// int memcmp(x0 left, x1 right, x2 bytes): the sign of the first byte that differs. bcmp wants less.
    .section .text.memcmp, "ax"
    .balign 64
    .globl  memcmp, bcmp
    .type   memcmp, @function
    .type   bcmp, @function
memcmp:
bcmp:
    subs    x2, x2, #32
    b.lo    2f
1:  ldp     x3, x5, [x0], #32
    ldp     x4, x6, [x1], #32
    ldp     x7, x9, [x0, #-16]
    ldp     x8, x10, [x1, #-16]
    cmp     x3, x4
    ccmp    x5, x6, #0, eq
    ccmp    x7, x8, #0, eq
    ccmp    x9, x10, #0, eq
    b.ne    8f
    subs    x2, x2, #32
    b.hs    1b
2:  tbz     x2, #4, 9f                  // the low five bits of x2 are still those of the bytes left
    ldp     x3, x5, [x0], #16
    ldp     x4, x6, [x1], #16
    cmp     x3, x4
    b.ne    6f
    mov     x3, x5
    mov     x4, x6
    cmp     x3, x4
    b.ne    6f
9:  tbz     x2, #3, 3f
    ldr     x3, [x0], #8
    ldr     x4, [x1], #8
    cmp     x3, x4
    b.ne    6f
3:  tbz     x2, #2, 4f
    ldr     w3, [x0], #4
    ldr     w4, [x1], #4
    cmp     x3, x4
    b.ne    6f
4:  and     x2, x2, #3
5:  cbz     x2, 7f
    ldrb    w3, [x0], #1
    ldrb    w4, [x1], #1
    sub     x2, x2, #1
    subs    w5, w3, w4
    b.eq    5b
    mov     w0, w5
    ret
8:  cmp     x3, x4                      // which of the four differs first
    b.ne    6f
    mov     x3, x5
    mov     x4, x6
    cmp     x3, x4
    b.ne    6f
    mov     x3, x7
    mov     x4, x8
    cmp     x3, x4
    b.ne    6f
    mov     x3, x9
    mov     x4, x10
6:  rev     x3, x3                      // the lowest address decides: make it the highest byte
    rev     x4, x4
    cmp     x3, x4
    mov     w0, #1
    cneg    w0, w0, lo
    ret
7:  mov     w0, wzr
    ret
    .size   memcmp, . - memcmp
