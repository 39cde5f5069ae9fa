// Functions that several plugins share. PLUGIN is the name of one, a string, defined before this is included.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu.h"

static inline void give_up(const char *why, uint64_t value)
{
	fprintf(stderr, PLUGIN ": %s %#jx\n", why, (uintmax_t)value);
	_Exit(1);
}

// The value of a register of 64 bits. For machines whose vCPUs run one at a time.
static inline uint64_t value_of(void *handle)
{
	static byte_array *bytes;
	uint64_t value = 0;
	if (!bytes)
		bytes = g_byte_array_new();
	g_byte_array_set_size(bytes, 0);
	int size = qemu_plugin_read_register(handle, bytes);
	if (size != 8)
		give_up("a register cannot be read, size", size);
	memcpy(&value, bytes->data, sizeof value);
	return value;
}

// Keeps the handle of a register, where it is one of the first `count` of x0, x1 and so on.
static inline void keep_register(void **registers, unsigned count, const register_description *description)
{
	unsigned number;
	char more;
	if (sscanf(description->name, "x%u%c", &number, &more) == 1 && number < count)
		registers[number] = description->handle;
}

// Opens the file of an argument KEY=FILE, where it is one of that key, which ends with its equals sign.
static inline void open_file(FILE **file, const char *key, const char *argument)
{
	if (!strncmp(argument, key, strlen(key)))
		*file = fopen(argument + strlen(key), "w");
}
