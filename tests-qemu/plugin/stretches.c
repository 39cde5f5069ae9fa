// QEMU TCG plugin: for each vCPU, the longest stretch with IRQs masked, and the longest in the kernel without a scheduling
// point, in instructions of that vCPU alone. QEMU 9.1 or newer, system emulation; a host thread for each vCPU, or one vCPU
// (with -icount and several, callbacks are given the vCPU that translated a block, not the one that runs it).
//
// A block of code is a few instructions with one entry. Each adds its length to its vCPU's count. The state (PSTATE) is
// read where it may have changed: after MSR DAIF*, ERET and WFI, and at addresses that exception vectors have.
//
// An interrupt that is pending when interrupts are unmasked is taken before the next instruction: between the MSR or ERET and
// the vector no block is executed that would show PSTATE. So at a vector SPSR_EL1 has what PSTATE was: an exception from where
// IRQs were on ends the masked stretch, and one from EL0 the one in the kernel.
//
// Instructions of loops that wait are counted apart: those between two executions of the same YIELD or WFE that are at most SPIN
// instructions from each other. How many of these there are is decided by how the host schedules the threads of the vCPUs.
//
// The guest marks, in the kernel's half of the addresses (kernel/src/stretches.rs):
//   orr xzr, xzr, xzr    a scheduling point
//   orr wzr, wzr, wzr    a record ends, another begins: a line for each vCPU is written
//
// Arguments: out=FILE; blocks=FILE for the addresses of the blocks of each longest stretch, in the order in which they were
// executed (the last TRACE of them), with the line that it has in the other file; masked=N and kernel=N for a backtrace of
// stretches that are longer, taken in the middle of that (by the frame records, as AAPCS64 has them) and written at the end of
// the line.
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUGIN "stretches"
#include "plugin.h"

enum { VCPUS = 64, SPIN = 64, TRACE = 1 << 16, STEP = 1000, DEEPEST = 32 };
enum kind { MASKED, IN_KERNEL, KINDS };
// Stretches in which the CPU has waited are apart: what comes after a wait depends on how long that took.
static const char *const names[KINDS][2] = { { "masked", "masked-waits" }, { "kernel", "kernel-waits" } };

struct chain { size_t calls; uint64_t at[DEEPEST]; };
struct longest { uint64_t own, waits, first, last, yield; size_t blocks; uint64_t *trace; struct chain chain; };
// Counters that inline operations of blocks change; a line of it for each vCPU.
struct score {
	uint64_t count;		// instructions executed
	uint64_t look;		// PSTATE may have changed
	uint64_t block;		// the last block's address
	uint64_t since;		// instructions since the last look at how long stretches are
};
static struct vcpu {
	uint64_t waits;		// of the count: in loops that wait
	uint64_t yield, yielded;	// the last YIELD or WFE, and the count then
	struct { bool open; uint64_t count, waits, first, executed; struct chain chain; } now[KINDS];
	struct longest longest[KINDS][2];
	uint64_t executed, *trace;	// blocks of the kernel, and the last TRACE of them
	byte_array *bytes;
} vcpus[VCPUS];

static void *scores;
static void *cpsr, *spsr, *vbar, *x29;
static uint64_t bounds[KINDS];	// 0: no backtraces
static FILE *out, *blocks;
static bool recording;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;	// of `longest`, and of the file

static struct score *score_of(unsigned vcpu)
{
	return qemu_plugin_scoreboard_find(scores, vcpu);
}

static void begin(unsigned vcpu, enum kind kind, uint64_t first)
{
	struct vcpu *v = &vcpus[vcpu];
	if (v->now[kind].open)
		return;
	v->now[kind].open = true;
	v->now[kind].count = score_of(vcpu)->count;
	v->now[kind].waits = v->waits;
	v->now[kind].first = first;
	v->now[kind].executed = v->executed;
	v->now[kind].chain.calls = 0;
}

// Copies the blocks of the stretch that ends.
static void keep_blocks(struct vcpu *v, enum kind kind, struct longest *longest)
{
	uint64_t first = v->now[kind].executed;
	if (v->executed - first > TRACE)
		first = v->executed - TRACE;
	longest->blocks = v->executed - first;
	for (size_t i = 0; i < longest->blocks; i++)
		longest->trace[i] = v->trace[(first + i) % TRACE];
}

static void end(unsigned vcpu, enum kind kind)
{
	struct vcpu *v = &vcpus[vcpu];
	struct score *score = score_of(vcpu);
	uint64_t waits = v->waits - v->now[kind].waits;
	uint64_t all = score->count - v->now[kind].count;
	uint64_t own = all > waits ? all - waits : 0;	// the first turn of a loop may have begun before
	struct longest *longest = &v->longest[kind][waits > 0];
	if (v->now[kind].open && recording && own > longest->own) {
		pthread_mutex_lock(&lock);
		*longest = (struct longest){ own, waits, v->now[kind].first, score->block, waits ? v->yield : 0, 0,
			longest->trace, v->now[kind].chain };
		if (blocks)
			keep_blocks(v, kind, longest);
		pthread_mutex_unlock(&lock);
	}
	v->now[kind].open = false;
}

// PSTATE and SPSR_EL1 have these in the same place.
static bool has_irqs_masked(uint64_t pstate)
{
	return pstate & 1 << 7;
}

static bool is_of_kernel(uint64_t pstate)
{
	return pstate & 3 << 2;
}

static uint64_t value_of_vcpu(void *handle, unsigned vcpu)
{
	struct vcpu *v = &vcpus[vcpu];
	uint64_t value = 0;
	g_byte_array_set_size(v->bytes, 0);
	int size = handle ? qemu_plugin_read_register(handle, v->bytes) : 0;
	if (size < 4 || size > 8) {
		fprintf(stderr, "stretches: PSTATE, SPSR_EL1, VBAR_EL1 or X29 cannot be read\n");
		abort();
	}
	memcpy(&value, v->bytes->data, size);
	return value;
}

// A block begins after something that may have changed PSTATE.
static void look(unsigned vcpu, void *address)
{
	uint64_t pstate = value_of_vcpu(cpsr, vcpu);
	score_of(vcpu)->look = 0;
	bool masked = has_irqs_masked(pstate), kernel = is_of_kernel(pstate);
	bool now[KINDS] = { [MASKED] = kernel && masked, [IN_KERNEL] = kernel };
	for (enum kind kind = 0; kind < KINDS; kind++) {
		if (now[kind])
			begin(vcpu, kind, (uint64_t)address);
		else
			end(vcpu, kind);
	}
}

// A block begins at an address that a vector may have.
static void on_vector(unsigned vcpu, void *address)
{
	if (((uint64_t)address & ~0x7ffull) == value_of_vcpu(vbar, vcpu)) {
		uint64_t before = value_of_vcpu(spsr, vcpu);
		if (!is_of_kernel(before) || !has_irqs_masked(before))
			end(vcpu, MASKED);
		if (!is_of_kernel(before))
			end(vcpu, IN_KERNEL);
	}
	look(vcpu, address);
}

static void on_block(unsigned vcpu, void *address)
{
	struct vcpu *v = &vcpus[vcpu];
	v->trace[v->executed++ % TRACE] = (uint64_t)address;
}

// The block's address, and the return addresses of the calls that have led to it.
static void keep_chain(unsigned vcpu, struct chain *chain, uint64_t address)
{
	struct vcpu *v = &vcpus[vcpu];
	uint64_t record[2] = { value_of_vcpu(x29, vcpu) }, before = 0;
	for (chain->calls = 0; chain->calls < DEEPEST; address = record[1]) {
		chain->at[chain->calls++] = address;
		// Stacks grow down, and an exception may have come from another one.
		if (!record[0] || record[0] == before || record[0] % 8)
			break;
		before = record[0];
		if (!qemu_plugin_read_memory_vaddr(before, v->bytes, sizeof record))
			break;
		memcpy(record, v->bytes->data, sizeof record);
		if (!record[1])
			break;
	}
}

// Every STEP instructions.
static void on_step(unsigned vcpu, void *address)
{
	struct score *score = score_of(vcpu);
	score->since = 0;
	for (enum kind kind = 0; kind < KINDS; kind++) {
		struct chain *chain = &vcpus[vcpu].now[kind].chain;
		bool deep = score->count - vcpus[vcpu].now[kind].count >= bounds[kind] / 2;
		if (bounds[kind] && vcpus[vcpu].now[kind].open && deep && !chain->calls)
			keep_chain(vcpu, chain, (uint64_t)address);
	}
}

static void on_point(unsigned vcpu, void *address)
{
	end(vcpu, IN_KERNEL);
	begin(vcpu, IN_KERNEL, (uint64_t)address);
}

static void on_wfi(unsigned vcpu, void *address)
{
	(void)address;
	end(vcpu, MASKED);
	end(vcpu, IN_KERNEL);
}

static void on_yield(unsigned vcpu, void *address)
{
	struct vcpu *v = &vcpus[vcpu];
	uint64_t count = score_of(vcpu)->count, since = count - v->yielded;
	if (v->yield == (uint64_t)address && since <= SPIN)
		v->waits += since;
	v->yield = (uint64_t)address;
	v->yielded = count;
}

static void on_record(unsigned vcpu, void *address)
{
	(void)vcpu, (void)address;
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < VCPUS && vcpus[i].bytes; i++) {
		for (unsigned j = 0; j < 2 * KINDS && recording; j++) {
			struct longest *l = &vcpus[i].longest[j / 2][j % 2];
			fprintf(out, "%u %s %ju %ju %#jx %#jx %#jx", i, names[j / 2][j % 2], (uintmax_t)l->own,
				(uintmax_t)l->waits, (uintmax_t)l->first, (uintmax_t)l->last, (uintmax_t)l->yield);
			for (size_t k = 0; k < l->chain.calls && l->own + l->waits > bounds[j / 2]; k++)
				fprintf(out, " %#jx", (uintmax_t)l->chain.at[k]);
			fprintf(out, "\n");
			if (blocks)
				fprintf(blocks, "%u %s %ju %ju\n", i, names[j / 2][j % 2], (uintmax_t)l->own, (uintmax_t)l->waits);
			for (size_t k = 0; k < l->blocks; k++)
				fprintf(blocks, "%#jx\n", (uintmax_t)l->trace[k]);
		}
		for (unsigned j = 0; j < 2 * KINDS; j++) {
			struct longest *l = &vcpus[i].longest[j / 2][j % 2];
			*l = (struct longest){ .trace = l->trace };
		}
	}
	if (blocks)
		fprintf(blocks, "\n");
	if (recording)
		fprintf(out, "\n");
	fflush(out);
	recording = true;
	pthread_mutex_unlock(&lock);
}

static void on_translation(plugin_id id, struct block *block)
{
	(void)id;
	uint64_t address = qemu_plugin_tb_vaddr(block);
	size_t length = qemu_plugin_tb_n_insns(block);
	entry count = { scores, offsetof(struct score, count) }, change = { scores, offsetof(struct score, look) };
	entry last = { scores, offsetof(struct score, block) }, since = { scores, offsetof(struct score, since) };
	bool traced = bounds[MASKED] || bounds[IN_KERNEL];
	bool kernel = address >> 63;
	// Before the block is counted. A vector begins each 128 bytes.
	if (kernel && address % 128 == 0)
		qemu_plugin_register_vcpu_tb_exec_cb(block, on_vector, READ_REGISTERS, (void *)address);
	else
		qemu_plugin_register_vcpu_tb_exec_cond_cb(block, look, READ_REGISTERS, IF_NOT_EQUAL, change, 0, (void *)address);
	qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, ADD_U64, count, length);
	qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, STORE_U64, last, address);
	if (traced)
		qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, ADD_U64, since, length);
	if (kernel && traced)
		qemu_plugin_register_vcpu_tb_exec_cond_cb(block, on_step, READ_REGISTERS, IF_AT_LEAST, since, STEP, (void *)address);
	if (kernel && blocks)
		qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, NO_REGISTERS, (void *)address);
	for (size_t i = 0; i < length && kernel; i++) {
		struct instruction *instruction = qemu_plugin_tb_get_insn(block, i);
		void *at = (void *)qemu_plugin_insn_vaddr(instruction);
		uint32_t word = 0;
		qemu_plugin_insn_data(instruction, &word, sizeof word);
		executed *call = NULL;
		bool changes = false;
		switch (word) {
		case 0xd503203f: case 0xd503205f: call = on_yield; break;
		case 0xd503207f: call = on_wfi; changes = true; break;
		case 0xaa1f03ff: call = on_point; break;
		case 0x2a1f03ff: call = on_record; break;
		case 0xd69f03e0: changes = true; break;	// ERET
		default:
			// MSR DAIFSet and DAIFClr; MSR DAIF.
			changes = (word & 0xfffff0df) == 0xd50340df || (word & 0xffffffe0) == 0xd51b4220;
		}
		if (call)
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, call, NO_REGISTERS, at);
		if (changes)
			qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(instruction, STORE_U64, change, 1);
	}
}

static void on_vcpu(plugin_id id, unsigned vcpu)
{
	(void)id;
	if (vcpu >= VCPUS) {
		fprintf(stderr, "stretches: more than %d CPUs\n", VCPUS);
		exit(1);
	}
	array *registers = qemu_plugin_get_registers();
	register_description *description = (void *)registers->data;
	for (unsigned i = 0; i < registers->length; i++) {
		if (!strcmp(description[i].name, "cpsr"))
			cpsr = description[i].handle;
		if (!strcmp(description[i].name, "SPSR_EL1"))
			spsr = description[i].handle;
		if (!strcmp(description[i].name, "VBAR"))
			vbar = description[i].handle;
		if (!strcmp(description[i].name, "x29"))
			x29 = description[i].handle;
	}
	struct vcpu *v = &vcpus[vcpu];
	v->bytes = g_byte_array_new();
	if (!blocks)
		return;
	v->trace = calloc(TRACE, sizeof *v->trace);
	for (unsigned j = 0; j < 2 * KINDS; j++)
		v->longest[j / 2][j % 2].trace = calloc(TRACE, sizeof *v->trace);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int arguments, char **argument)
{
	(void)info;
	for (int i = 0; i < arguments; i++) {
		open_file(&out, "out=", argument[i]);
		open_file(&blocks, "blocks=", argument[i]);
		sscanf(argument[i], "masked=%ju", (uintmax_t *)&bounds[MASKED]);
		sscanf(argument[i], "kernel=%ju", (uintmax_t *)&bounds[IN_KERNEL]);
	}
	if (!out) {
		fprintf(stderr, "stretches: out=FILE, which can be written, is missing\n");
		return -1;
	}
	scores = qemu_plugin_scoreboard_new(sizeof(struct score));
	qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	return 0;
}
