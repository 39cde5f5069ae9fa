// Declarations of QEMU's qemu-plugin.h, version 4 (which distributions do not package), under shorter names.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t plugin_id;
typedef struct { void *score; size_t offset; } entry;
typedef struct { uint8_t *data; unsigned length; } byte_array;	// GLib's, as the next one
typedef struct { char *data; unsigned length; } array;
typedef struct { void *handle; const char *name, *feature; } register_description;
typedef void executed(unsigned vcpu, void *data);
typedef uint32_t access_info;
typedef void accessed(unsigned vcpu, access_info, uint64_t address, void *data);
struct physical;
struct block;
struct instruction;
enum { NO_REGISTERS, READ_REGISTERS };
enum { IF_NOT_EQUAL = 3, IF_LESS, IF_AT_LEAST = 7 };
enum { ADD_U64, STORE_U64 };
enum { LOADS_AND_STORES = 3 };
#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 4;
size_t qemu_plugin_tb_n_insns(const struct block *);
uint64_t qemu_plugin_tb_vaddr(const struct block *);
struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
size_t qemu_plugin_insn_data(const struct instruction *, void *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct instruction *);
void *qemu_plugin_scoreboard_new(size_t);
void *qemu_plugin_scoreboard_find(void *, unsigned);
int qemu_plugin_num_vcpus(void);
void qemu_plugin_register_vcpu_init_cb(plugin_id, void (*)(plugin_id, unsigned));
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct block *, executed *, int, void *);
void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct block *, executed *, int, int, entry, uint64_t, void *);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct block *, int, entry, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct instruction *, executed *, int, void *);
void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct instruction *, int, entry, uint64_t);
void qemu_plugin_register_vcpu_mem_cb(struct instruction *, accessed *, int, int, void *);
bool qemu_plugin_mem_is_store(access_info);
unsigned qemu_plugin_mem_size_shift(access_info);
struct physical *qemu_plugin_get_hwaddr(access_info, uint64_t address);
bool qemu_plugin_hwaddr_is_io(const struct physical *);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct physical *);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
array *qemu_plugin_get_registers(void);
int qemu_plugin_read_register(void *, byte_array *);
bool qemu_plugin_read_memory_vaddr(uint64_t address, byte_array *, size_t);
byte_array *g_byte_array_new(void);
byte_array *g_byte_array_set_size(byte_array *, unsigned);
