// From EL0 into the kernel and back, on the kernel stack of the thread that runs.
//
// The stack is empty when EL0 runs: the frame lies at its top, and no vector need ask whether there is room. The record
// in the frame is zero from the thread's birth on, which ends every backtrace. x19 is the thread from the vector to the
// exception return; what is called in between preserves it, also where the thread goes to another CPU.
//
// The way out looks at one word, the thread's work, with interrupts masked until the ERET: what sets a bit from then on
// sends an interrupt, which is taken at EL0.

    // x2 to x29 of the frame, with STP or LDP.
    .macro  frame_registers op
    \op     x2, x3, [sp, #{X} + 16]
    \op     x4, x5, [sp, #{X} + 32]
    \op     x6, x7, [sp, #{X} + 48]
    \op     x8, x9, [sp, #{X} + 64]
    \op     x10, x11, [sp, #{X} + 80]
    \op     x12, x13, [sp, #{X} + 96]
    \op     x14, x15, [sp, #{X} + 112]
    \op     x16, x17, [sp, #{X} + 128]
    \op     x18, x19, [sp, #{X} + 144]
    \op     x20, x21, [sp, #{X} + 160]
    \op     x22, x23, [sp, #{X} + 176]
    \op     x24, x25, [sp, #{X} + 192]
    \op     x26, x27, [sp, #{X} + 208]
    \op     x28, x29, [sp, #{X} + 224]
    .endm

// A NOP that is `instruction` where the sites of `identifier` are taken (`granule_arch::alternative`).
    .macro  patched_instruction identifier, instruction
7:  nop
    .pushsection .alternatives, "a", %progbits
    .balign 4
    .long   7b - .
    .long   \instruction
    .short  \identifier
    .short  {INSTRUCTION}
    .popsection
    .endm

// A NOP that is a jump to `target` where they are.
    .macro  patched_jump identifier, target
7:  nop
    .pushsection .alternatives, "a", %progbits
    .balign 4
    .long   7b - .
    .long   \target - .
    .short  \identifier
    .short  0
    .popsection
    .endm

// The hardware has set PSTATE.TCO: accesses of the kernel are checked again.
    .macro  resume_tag_checks
    patched_instruction {TAG_CHECKS}, {CLEAR_TCO}
    .endm

// After an ERET: what a CPU fetches from there goes no further.
    .macro  speculation_ends
    patched_instruction {SPECULATION_BARRIER}, 0xd50330ff   // SB
    dsb     nsh
    isb
    .endm

    .macro  el0_save
    resume_tag_checks
    stp     x0, x1, [sp, #-{FRAME_SIZE}]!   // x0 is the first field
    frame_registers stp
    mrs     x21, sp_el0
    mrs     x22, elr_el1
    mrs     x23, spsr_el1
    mrs     x19, tpidr_el1
    stp     x30, x21, [sp, #{X} + 240]
    stp     x22, x23, [sp, #{ELR}]
    ldr     x19, [x19, #{CURRENT}]
    .endm

    .macro  el0_synchronous
    .balign 128
    el0_save
    mrs     x24, esr_el1
    lsr     x25, x24, #26
    cmp     x25, #{EC_SVC}
    b.eq    el0_syscall                     // what is called most takes the fewest instructions
    b       el0_exception
    .endm

    .macro  el0_irq
    .balign 128
    el0_save
    b       el0_interrupt
    .endm

    .macro  el0_unexpected number
    .balign 128
    el0_save
    mov     x1, #\number
    b       el0_report
    .endm

// After the vectors, in their section: conditional branches lead here, and reach no further than 1 MiB.
    .pushsection .text.vectors, 1, "ax", %progbits
    .type   el0_syscall, %function
el0_syscall:
    add     x29, sp, #{RECORD}
    msr     daifclr, #7
    ldr     x9, [x19, #{SYSCALL}]
    mov     x0, sp
    mov     x1, x19
    blr     x9

    .global el0_return
el0_return:
.Lreturn:
    msr     daifset, #3
    ldr     w9, [x19, #{WORK}]
    cbnz    w9, el0_work
el0_enter:
    patched_jump {ASYNCHRONOUS_TAG_CHECKS}, el0_check_tags
el0_checked:
    ldp     x22, x23, [sp, #{ELR}]
    ldp     x30, x21, [sp, #{X} + 240]
    msr     elr_el1, x22
    msr     spsr_el1, x23
    msr     sp_el0, x21
    frame_registers ldp
    ldp     x0, x1, [sp], #{FRAME_SIZE}
    eret
    speculation_ends

    .type   el0_exception, %function
el0_exception:
    mrs     x26, far_el1
    stp     x24, x26, [sp, #{ESR}]
    add     x29, sp, #{RECORD}
    msr     daifclr, #7
    mov     x0, sp
    mov     x1, x19
    and     x25, x25, #~{EC_ABORTS}         // either abort of EL0
    cmp     x25, #{EC_FETCH_ABORT}
    b.ne    1f
    ldr     x9, [x19, #{FAULT}]
    blr     x9
    tbnz    w0, #0, .Lreturn                // served
    mov     x0, sp
    mov     x1, x19
1:  bl      {user_exception}
    b       el0_return

    .type   el0_interrupt, %function
el0_interrupt:
    add     x29, sp, #{RECORD}
    mov     x0, x19
    bl      {user_interrupt}
    b       el0_return

    .type   el0_work, %function
el0_work:
    add     x29, sp, #{RECORD}
    mov     x0, sp
    mov     x1, x19
    bl      {user_work}
    b       el0_enter

    .type   el0_check_tags, %function
el0_check_tags:
    add     x29, sp, #{RECORD}
    bl      {check_tags}
    b       el0_checked

    .type   el0_report, %function
el0_report:
    mrs     x24, esr_el1
    mrs     x26, far_el1
    stp     x24, x26, [sp, #{ESR}]
    add     x29, sp, #{RECORD}
    mov     x0, sp
    bl      {handle_exception}              // does not return
    b       exception_stop
    .popsection
