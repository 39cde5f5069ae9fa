// QEMU TCG plugin: which blocks of the kernel's image are executed, for each line typed at the monitor.
//
// The image is linked at a multiple of 2 MiB, is smaller than that, and slides by multiples of it: a block is known by its
// offset, which is the same in every boot. A line `OFFSET LENGTH` in hexadecimal stands for so many instructions that were
// executed one after the other, unless the first of them faulted. Instructions between may have faulted too: what follows
// them in the block counts all the same.
//
// Each block is reported by its first execution since the last record; after that it costs an inline comparison and a
// store. `orr wzr, wzr, wzr` in the kernel ends a record (kernel/src/stretches.rs): an empty line. The first record is
// the boot's.
//
// Argument: out=FILE
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define PLUGIN "blocks"
#include "plugin.h"

enum { IMAGE = 2 << 20, LENGTH_BITS = 12 };
static const uint64_t LINKED = 0xffff800080000000, SLIDES = 1 << 30;
// For each instruction of the image, how long the longest block was that began there in this record.
struct score { uint64_t lengths[IMAGE / 4]; };

static void *scores;
static FILE *out;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void on_block(unsigned vcpu, void *data)
{
	(void)vcpu;
	uintptr_t block = (uintptr_t)data;
	pthread_mutex_lock(&lock);
	fprintf(out, "%jx %jx\n", (uintmax_t)(block >> LENGTH_BITS), (uintmax_t)(block & ((1 << LENGTH_BITS) - 1)));
	pthread_mutex_unlock(&lock);
}

static void on_record(unsigned vcpu, void *data)
{
	(void)vcpu, (void)data;
	pthread_mutex_lock(&lock);
	fprintf(out, "\n");
	fflush(out);
	for (int i = 0; i < qemu_plugin_num_vcpus(); i++)
		memset(qemu_plugin_scoreboard_find(scores, i), 0, sizeof(struct score));
	pthread_mutex_unlock(&lock);
}

static void on_translation(plugin_id id, struct block *block)
{
	(void)id;
	uint64_t address = qemu_plugin_tb_vaddr(block), offset = address % IMAGE;
	size_t length = qemu_plugin_tb_n_insns(block);
	if (address - LINKED >= SLIDES || length >= 1 << LENGTH_BITS)
		return;
	entry longest = { scores, offsetof(struct score, lengths) + offset / 4 * 8 };
	void *data = (void *)(uintptr_t)(offset << LENGTH_BITS | length);
	qemu_plugin_register_vcpu_tb_exec_cond_cb(block, on_block, NO_REGISTERS, IF_LESS, longest, length, data);
	qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, STORE_U64, longest, length);
	for (size_t i = 0; i < length; i++) {
		struct instruction *instruction = qemu_plugin_tb_get_insn(block, i);
		uint32_t word = 0;
		qemu_plugin_insn_data(instruction, &word, sizeof word);
		if (word == 0x2a1f03ff)
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_record, NO_REGISTERS, NULL);
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
	for (int i = 0; i < arguments; i++)
		open_file(&out, "out=", argument[i]);
	if (!out) {
		fprintf(stderr, "blocks: out=FILE, which can be written, is missing\n");
		return -1;
	}
	scores = qemu_plugin_scoreboard_new(sizeof(struct score));
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
