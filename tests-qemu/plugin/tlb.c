// QEMU TCG plugin: entries that passes of the guest over memory fill in a modelled TLB, and descriptors that its walks
// read.
//
// The TLB is fully associative and replaces the least recently used entry. An entry is a leaf: a page, a block, or a
// contiguous group as a whole. An access whose leaf has no entry fills one, after a walk of the tables from level 0 on,
// for pages of 4 KiB and addresses of 48 bits: it reads 4 descriptors down to a page, 3 down to a block of 2 MiB.
//
// Beside it, the reads are counted that are left with a walk cache which keeps the last table of each level: a walk
// begins at the lowest of them that is on its way.
//
// The guest marks passes, by instructions without an effect:
//   hint #96    a pass begins, with an empty TLB and an empty walk cache: over x1 bytes from x0 on, whose leaves are of
//               x2 bytes each, as the guest finds in the tables
//   hint #97    it ends; x0 has its number
// Accesses to other addresses are not looked up.
//
// Not modelled: fetches of instructions, a second level, sets, prefetch, entries that join pages which are neighbours,
// and the time that anything takes. For machines with one vCPU.
//
// Arguments: entries=N, those of the TLB; out=FILE, a line for each pass, in decimal:
//   NUMBER ACCESSES FILLED READS READS_WITH_A_WALK_CACHE
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUGIN "tlb"
#include "plugin.h"

enum { LEVELS = 4, PAGE_BITS = 12, LEVEL_BITS = 9, REGISTERS = 3 };

static struct slot { uint64_t leaf, used; } *tlb;	// by address / leaf size; used 0: empty
static size_t entries;
static uint64_t tables[LEVELS];	// of the walk cache: the bits of addresses that lead to the table
static struct pass { bool open; uint64_t start, size, leaf, accesses, filled, reads, cached; } pass;
static void *registers[REGISTERS];
static FILE *out;

// How many bits of an address an entry of that level leaves to what it leads to.
static unsigned bits_below(unsigned level)
{
	return PAGE_BITS + LEVEL_BITS * (LEVELS - 1 - level);
}

static void walk(uint64_t address)
{
	unsigned last = LEVELS - 1;
	while (last && pass.leaf >= 1ull << bits_below(last - 1))
		last--;
	unsigned first = last;
	while (first && tables[first] != address >> bits_below(first - 1))
		first--;
	pass.reads += last + 1;
	pass.cached += last + 1 - first;
	for (unsigned level = 1; level <= last; level++)
		tables[level] = address >> bits_below(level - 1);
}

static void look_up(uint64_t address)
{
	uint64_t leaf = address / pass.leaf;
	struct slot *oldest = tlb;
	for (struct slot *slot = tlb; slot < tlb + entries; slot++) {
		if (slot->used && slot->leaf == leaf) {
			slot->used = pass.accesses;
			return;
		}
		if (slot->used < oldest->used)
			oldest = slot;
	}
	*oldest = (struct slot){ leaf, pass.accesses };
	pass.filled++;
	walk(address);
}

static void on_access(unsigned vcpu, access_info info, uint64_t address, void *data)
{
	(void)vcpu, (void)data;
	if (!pass.open || address - pass.start >= pass.size)
		return;
	uint64_t last = address + (1u << qemu_plugin_mem_size_shift(info)) - 1;
	pass.accesses++;
	look_up(address);
	if (last / pass.leaf != address / pass.leaf)
		look_up(last);
}

static void on_begin(unsigned vcpu, void *data)
{
	(void)vcpu, (void)data;
	uint64_t start = value_of(registers[0]), size = value_of(registers[1]), leaf = value_of(registers[2]);
	pass = (struct pass){ .open = true, .start = start, .size = size, .leaf = leaf };
	if (pass.leaf < 1 << PAGE_BITS || pass.leaf & (pass.leaf - 1))
		give_up("no size of a leaf:", pass.leaf);
	memset(tlb, 0, entries * sizeof *tlb);
	memset(tables, 0xff, sizeof tables);
}

static void on_end(unsigned vcpu, void *data)
{
	(void)vcpu, (void)data;
	if (!pass.open)
		return;
	pass.open = false;
	fprintf(out, "%ju %ju %ju %ju %ju\n", (uintmax_t)value_of(registers[0]), (uintmax_t)pass.accesses,
		(uintmax_t)pass.filled, (uintmax_t)pass.reads, (uintmax_t)pass.cached);
}

static void on_translation(plugin_id id, struct block *block)
{
	(void)id;
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
		struct instruction *instruction = qemu_plugin_tb_get_insn(block, i);
		uint32_t word = 0;
		qemu_plugin_insn_data(instruction, &word, sizeof word);
		if (word == 0xd5032c1f)
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_begin, READ_REGISTERS, NULL);
		else if (word == 0xd5032c3f)
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_end, READ_REGISTERS, NULL);
		qemu_plugin_register_vcpu_mem_cb(instruction, on_access, NO_REGISTERS, LOADS_AND_STORES, NULL);
	}
}

static void on_vcpu(plugin_id id, unsigned vcpu)
{
	(void)id;
	if (vcpu)
		give_up("there is more than one CPU, number", vcpu);
	array *all = qemu_plugin_get_registers();
	register_description *description = (void *)all->data;
	for (unsigned i = 0; i < all->length; i++)
		keep_register(registers, REGISTERS, &description[i]);
	for (unsigned number = 0; number < REGISTERS; number++) {
		if (!registers[number])
			give_up("there is no register x0, x1 or x2: number", number);
	}
}

static void at_exit(plugin_id id, void *data)
{
	(void)id, (void)data;
	fclose(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int arguments, char **argument)
{
	(void)info;
	for (int i = 0; i < arguments; i++) {
		open_file(&out, "out=", argument[i]);
		if (!strncmp(argument[i], "entries=", 8))
			entries = strtoul(argument[i] + 8, NULL, 10);
	}
	tlb = calloc(entries, sizeof *tlb);
	if (!out || !entries || !tlb) {
		fprintf(stderr, "tlb: entries=N, or out=FILE, which can be written, is missing\n");
		return -1;
	}
	qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
