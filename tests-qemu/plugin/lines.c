// QEMU TCG plugin: cache lines that operations of the guest move between CPUs.
//
// Each CPU has a private cache without end, of lines of 64 bytes by physical address. A line has its holders, and the CPU
// that stored to it last. Two things move a line:
//   - a load, where this CPU does not hold the line and another stored to it last;
//   - a store, an atomic or a load-exclusive, where another CPU holds the line: all others lose it.
// Nothing else is a cost: a line that no CPU has stored to since the caches began, empty, at the first marker, is free. A
// store that zeroes a page is counted apart, as contents.
//
// The guest marks operations, by instructions without an effect:
//   hint #96    this CPU's operation begins
//   hint #97    it ends; x0 has the number of its row, 0: warming up, not counted
//   hint #98    operations of row x0 had x1 events: what these are, the guest knows
//
// Not seen by QEMU's callbacks for memory and done here: DC ZVA, and FEAT_MOPS's SET* and CPY*, at addresses of EL1. Not
// modelled: fetches of instructions, walks of tables and their flags, prefetch, eviction, devices.
//
// For several vCPUs in one host thread (-icount). There QEMU 10.0 gives callbacks the vCPU that translated a block, not
// the one that runs it, and inline operations on scoreboards go wrong: so each block looks who runs it, by TPIDR_EL1, which
// is another on each CPU of Granule and of Linux.
//
// Arguments: out=FILE, a line for each row at the end:
//   ROW OPERATIONS INSTRUCTIONS LOADS STORES CONTENTS LEAST MOST EVENTS
// (least and most: lines that a single operation moved, without contents); moves=FILE, a line for each place in the code
// that moved a line:
//   ROW load|store|contents LINE PC TIMES
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUGIN "lines"
#include "plugin.h"

enum { CPUS = 32, ROWS = 64, REGISTERS = 31, LINE_BITS = 6, PAGE_BITS = 12, LINES = 1 << (PAGE_BITS - LINE_BITS) };
enum { PAGES = 1 << 20 };	// of physical memory: 4 GiB
enum { MOVES = 1 << 20 };
// DC ZVA's block, of `-cpu max`; a SET of a page is zeroing too.
enum { ZVA = 512, PAGE = 1 << PAGE_BITS };
// Granule's linear map (kernel/src/mm/layout.rs), and a descriptor's address.
static const uint64_t LINEAR = 0xffff000000000000, LINEAR_END = 0xffff800000000000, TABLE = 0xfffffffff000;
enum kind { LOAD, STORE, CONTENTS, KINDS };
static const char *const names[KINDS] = { "load", "store", "contents" };

// CPUs here are numbered in the order in which they are first seen, from 0; a writer is one more, 0: none.
struct line { uint32_t holders; uint8_t writer; };
struct move { uint64_t line, pc, times; uint8_t row; enum kind kind; };
static struct cpu {
	uint64_t identity;
	bool open;
	uint64_t instructions, moved[KINDS];
	struct move *moves;	// of the open window
	size_t count, room;
} cpus[CPUS], *running;
static unsigned seen;
static struct row { uint64_t operations, instructions, moved[KINDS], least, most, events; } rows[ROWS];
static struct line *lines[PAGES];
static struct move *moves;	// by row, line, place and kind
static void *registers[REGISTERS], *tpidr, *ttbr1;
static byte_array *bytes;
static FILE *out, *places;
static bool active;

// Finds out which CPU runs.
static void on_block(unsigned vcpu, void *data)
{
	(void)vcpu, (void)data;
	if (!active)
		return;
	uint64_t identity = value_of(tpidr);
	if (running && running->identity == identity)
		return;
	for (unsigned i = 0; i < seen; i++) {
		if (cpus[i].identity == identity) {
			running = &cpus[i];
			return;
		}
	}
	if (seen == CPUS)
		give_up("too many CPUs, the next has TPIDR_EL1", identity);
	running = &cpus[seen++];
	running->identity = identity;
}

static void move(enum kind kind, uint64_t physical, uint64_t pc)
{
	struct cpu *cpu = running;
	if (!cpu->open)
		return;
	cpu->moved[kind]++;
	if (!places)
		return;
	if (cpu->count == cpu->room) {
		cpu->room = cpu->room ? 2 * cpu->room : 1024;
		cpu->moves = realloc(cpu->moves, cpu->room * sizeof *cpu->moves);
		if (!cpu->moves)
			give_up("no memory for moves:", cpu->room);
	}
	cpu->moves[cpu->count++] = (struct move){ physical >> LINE_BITS << LINE_BITS, pc, 1, 0, kind };
}

static void touch(uint64_t physical, uint64_t pc, bool store, bool contents)
{
	uint64_t page = physical >> PAGE_BITS;
	if (page >= PAGES)
		give_up("memory beyond the first 4 GiB:", physical);
	if (!lines[page])
		lines[page] = calloc(LINES, sizeof **lines);
	struct line *line = &lines[page][physical >> LINE_BITS & (LINES - 1)];
	unsigned number = running - cpus;
	uint32_t self = 1u << number;
	if (store) {
		if (line->holders & ~self)
			move(contents ? CONTENTS : STORE, physical, pc);
		*line = (struct line){ self, number + 1 };
	} else if (!(line->holders & self)) {
		if (line->writer && line->writer != number + 1)
			move(LOAD, physical, pc);
		line->holders |= self;
	}
}

// Walks the kernel's tables, which are in the linear map: pages of 4 KiB, addresses of 48 bits.
static uint64_t translate(uint64_t address)
{
	if (address < LINEAR_END)
		return address - LINEAR;
	uint64_t table = value_of(ttbr1) & TABLE;
	for (unsigned shift = PAGE_BITS + 27;; shift -= 9) {
		uint64_t entry = 0, mask = (1ull << shift) - 1;
		if (!qemu_plugin_read_memory_vaddr(LINEAR + table + (address >> shift & 511) * 8, bytes, sizeof entry))
			give_up("a table cannot be read of", address);
		memcpy(&entry, bytes->data, sizeof entry);
		if (!(entry & 1))
			give_up("there is no page at", address);
		if (shift == PAGE_BITS || !(entry & 2))
			return (entry & TABLE & ~mask) | (address & mask);
		table = entry & TABLE;
	}
}

static bool is_of_kernel(uint64_t address)
{
	return address >> 63;
}

// `data` of a memory callback: the instruction's address, and bit 0 where its loads count as stores.
static void on_access(unsigned vcpu, access_info info, uint64_t address, void *data)
{
	(void)vcpu;
	struct physical *handle = active ? qemu_plugin_get_hwaddr(info, address) : NULL;
	if (!handle || qemu_plugin_hwaddr_is_io(handle))
		return;
	uint64_t physical = qemu_plugin_hwaddr_phys_addr(handle), pc = (uint64_t)data & ~1ull;
	bool store = (uint64_t)data & 1 || qemu_plugin_mem_is_store(info);
	uint64_t last = physical + (1u << qemu_plugin_mem_size_shift(info)) - 1;
	touch(physical, pc, store, false);
	if (last >> LINE_BITS != physical >> LINE_BITS)
		touch(last, pc, store, false);
}

static void touch_range(uint64_t start, uint64_t size, uint64_t pc, bool store, bool contents)
{
	if (!is_of_kernel(start))
		return;
	for (uint64_t line = start >> LINE_BITS; size && line <= (start + size - 1) >> LINE_BITS; line++)
		touch(translate(line << LINE_BITS), pc, store, contents);
}

struct bulk { uint64_t pc; uint32_t word; };

static void on_zva(unsigned vcpu, void *data)
{
	(void)vcpu;
	struct bulk *bulk = data;
	if (active)
		touch_range(value_of(registers[bulk->word & 31]) & ~(ZVA - 1ull), ZVA, bulk->pc, true, true);
}

// SETP, the first of three instructions: its registers have all there is to do.
static void on_set(unsigned vcpu, void *data)
{
	(void)vcpu;
	struct bulk *bulk = data;
	if (!active)
		return;
	uint64_t size = value_of(registers[bulk->word >> 5 & 31]);
	touch_range(value_of(registers[bulk->word & 31]), size, bulk->pc, true, size >= PAGE);
}

// CPYP or CPYFP.
static void on_copy(unsigned vcpu, void *data)
{
	(void)vcpu;
	struct bulk *bulk = data;
	if (!active)
		return;
	uint64_t size = value_of(registers[bulk->word >> 5 & 31]);
	touch_range(value_of(registers[bulk->word >> 16 & 31]), size, bulk->pc, false, false);
	touch_range(value_of(registers[bulk->word & 31]), size, bulk->pc, true, false);
}

// Arm ARM C4.1: exclusives, CAS and CASP, and the atomics of FEAT_LSE without LDAPR, which only loads.
static bool loads_to_store(uint32_t word)
{
	if ((word & 0x3f000000) == 0x08000000)
		return !(word & 1 << 23) || word & 1 << 21;
	return (word & 0x3f200c00) == 0x38200000 && (word & 0xf000) != 0xc000;
}

static void on_instruction(unsigned vcpu, void *data)
{
	(void)vcpu, (void)data;
	if (active)
		running->instructions++;
}

static void on_begin(unsigned vcpu, void *data)
{
	if (!active) {
		active = true;
		on_block(vcpu, data);
	}
	running->open = true;
	running->instructions = running->count = 0;
	memset(running->moved, 0, sizeof running->moved);
}

static void keep(const struct move *one, unsigned row)
{
	uint64_t hash = one->line >> LINE_BITS;
	hash = (hash * 31 + one->pc) * 31 + row * KINDS + one->kind;
	hash *= 0x9e3779b97f4a7c15;
	for (size_t tries = 0, i = hash >> 44; tries < MOVES; tries++, i++) {
		struct move *kept = &moves[i % MOVES];
		if (!kept->times) {
			*kept = *one;
			kept->row = row;
			return;
		}
		if (kept->line == one->line && kept->pc == one->pc && kept->row == row && kept->kind == one->kind) {
			kept->times++;
			return;
		}
	}
	give_up("too many places that move lines, of row", row);
}

static void on_end(unsigned vcpu, void *data)
{
	(void)vcpu, (void)data;
	if (!active || !running->open)
		return;
	running->open = false;
	uint64_t number = value_of(registers[0]), lines_moved = running->moved[LOAD] + running->moved[STORE];
	if (!number)
		return;
	if (number >= ROWS)
		give_up("there is no row", number);
	struct row *row = &rows[number];
	row->instructions += running->instructions;
	for (enum kind kind = 0; kind < KINDS; kind++)
		row->moved[kind] += running->moved[kind];
	if (!row->operations || lines_moved < row->least)
		row->least = lines_moved;
	if (lines_moved > row->most)
		row->most = lines_moved;
	row->operations++;
	for (size_t i = 0; i < running->count; i++)
		keep(&running->moves[i], number);
}

static void on_events(unsigned vcpu, void *data)
{
	(void)vcpu, (void)data;
	if (!active)
		return;
	uint64_t number = value_of(registers[0]);
	if (number >= ROWS)
		give_up("there is no row", number);
	rows[number].events += value_of(registers[1]);
}

static void on_translation(plugin_id id, struct block *block)
{
	(void)id;
	qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, READ_REGISTERS, NULL);
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
		struct instruction *instruction = qemu_plugin_tb_get_insn(block, i);
		uint64_t pc = qemu_plugin_insn_vaddr(instruction);
		uint32_t word = 0;
		qemu_plugin_insn_data(instruction, &word, sizeof word);
		executed *call = on_instruction, *bulk = NULL;
		if (word == 0xd5032c1f)
			call = on_begin;
		else if (word == 0xd5032c3f)
			call = on_end;
		else if (word == 0xd5032c5f)
			call = on_events;
		else if ((word & 0xffffffe0) == 0xd50b7420)
			bulk = on_zva;
		else if ((word & 0xfbe0cc00) == 0x19c00400)
			bulk = on_set;
		else if ((word & 0xfbe00c00) == 0x19000400)
			bulk = on_copy;
		int reads = call == on_instruction ? NO_REGISTERS : READ_REGISTERS;
		qemu_plugin_register_vcpu_insn_exec_cb(instruction, call, reads, NULL);
		if (bulk) {
			// For as long as QEMU may run the block: there are few of these in the code.
			struct bulk *data = malloc(sizeof *data);
			*data = (struct bulk){ pc, word };
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, bulk, READ_REGISTERS, data);
		}
		void *data = (void *)(uintptr_t)(pc | loads_to_store(word));
		qemu_plugin_register_vcpu_mem_cb(instruction, on_access, NO_REGISTERS, LOADS_AND_STORES, data);
	}
}

static void on_vcpu(plugin_id id, unsigned vcpu)
{
	(void)id, (void)vcpu;
	array *all = qemu_plugin_get_registers();
	register_description *description = (void *)all->data;
	for (unsigned i = 0; i < all->length; i++) {
		keep_register(registers, REGISTERS, &description[i]);
		if (!strcmp(description[i].name, "TPIDR_EL1"))
			tpidr = description[i].handle;
		if (!strcmp(description[i].name, "TTBR1_EL1"))
			ttbr1 = description[i].handle;
	}
	if (!registers[0] || !tpidr || !ttbr1)
		give_up("there is no x0, TPIDR_EL1 or TTBR1_EL1 among registers:", all->length);
}

static void at_exit(plugin_id id, void *data)
{
	(void)id, (void)data;
	for (unsigned i = 0; i < ROWS; i++) {
		struct row *row = &rows[i];
		if (row->operations)
			fprintf(out, "%u %ju %ju %ju %ju %ju %ju %ju %ju\n", i, (uintmax_t)row->operations, (uintmax_t)row->instructions,
				(uintmax_t)row->moved[LOAD], (uintmax_t)row->moved[STORE], (uintmax_t)row->moved[CONTENTS],
				(uintmax_t)row->least, (uintmax_t)row->most, (uintmax_t)row->events);
	}
	fclose(out);
	if (!places)
		return;
	for (size_t i = 0; i < MOVES; i++) {
		struct move *one = &moves[i];
		if (one->times)
			fprintf(places, "%u %s %#jx %#jx %ju\n", one->row, names[one->kind], (uintmax_t)one->line,
				(uintmax_t)one->pc, (uintmax_t)one->times);
	}
	fclose(places);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int arguments, char **argument)
{
	(void)info;
	for (int i = 0; i < arguments; i++) {
		open_file(&out, "out=", argument[i]);
		open_file(&places, "moves=", argument[i]);
	}
	bytes = g_byte_array_new();
	moves = calloc(MOVES, sizeof *moves);
	if (!out || !moves) {
		fprintf(stderr, "lines: out=FILE, which can be written, is missing\n");
		return -1;
	}
	qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
