//! Programs of others, and the reasons of those that do not pass here.

/// Programs of packages.
pub(super) struct Family {
    /// The heading of its section.
    pub(super) name: &'static str,
    /// Debian's packages, whose dependencies come with them.
    pub(super) packages: &'static [&'static str],
    /// Files and folders of them.
    pub(super) files: &'static [&'static str],
    /// Each with a name for it, run by a shell in which the programs are by their paths.
    pub(super) scripts: &'static [(&'static str, &'static str)],
}

/// Has the programs that follow allocate by a library.
macro_rules! preload {
    ($library:literal) => {
        concat!("export LD_PRELOAD=/usr/lib/aarch64-linux-gnu/", $library, "\n")
    };
}
/// Many strings, in one thread.
macro_rules! strings {
    () => {
        "/usr/bin/lua5.4 -e 'local t = {} for r = 1, 5 do for i = 1, 100000 do t[i] = string.rep(\"x\", i % 300) end end print(#t)'"
    };
}
/// Many arrays of bytes, in four threads.
macro_rules! threads {
    () => {
        "/usr/bin/python3.11 -c 'import threading; ts = [threading.Thread(target=lambda: [bytearray(i % 5000) for i in range(20000)]) for _ in range(4)]; [t.start() for t in ts]; [t.join() for t in ts]; print(1)'"
    };
}

pub(super) const PACKAGED: [Family; 3] = [
    Family {
        name: "Shells and languages",
        packages: &[
            "dash", "mksh", "lua5.4", "gawk", "jq", "python3.11-minimal", "ripgrep", "golang-1.19-go", "sqlite3", "coreutils",
        ],
        files: &[
            "bin/dash",
            "bin/mksh",
            "usr/bin/lua5.4",
            "usr/bin/gawk",
            "usr/bin/jq",
            "usr/bin/python3.11",
            "usr/lib/python3.11",
            "usr/bin/rg",
            "usr/bin/sqlite3",
            "usr/bin/sort",
            "usr/lib/go-1.19/bin/gofmt",
        ],
        scripts: &[
            ("busybox-sh", "for i in 1 2 3; do echo $i; done | while read n; do echo n=$n; done
/busybox cat <<END | /busybox tr a-z A-Z
here
END
x=$(echo one two | /busybox awk '{print $2}'); echo $x $((3 * 7))
(exit 3); echo $?; /busybox false | /busybox true; echo $?
/busybox seq 1 20000 | /busybox sort -n | /busybox tail -n 1"),
            ("dash", "exec /bin/dash -c 'trap \"echo usr1\" USR1; kill -USR1 $$; sh=$(echo deep $(echo deeper)); echo $sh
/busybox sleep 0 & wait $!; echo $?; for i in 1 2 3 4 5 6 7 8; do /busybox true & done; wait; echo all
cd /tmp; echo text >f; ln=$(/busybox wc -c <f); echo $ln; echo more >>f; /busybox cat f; /busybox rm f'"),
            ("mksh", "exec /bin/mksh -c 'set -A a one two three; echo ${a[1]} ${#a[*]}; typeset -i i=0; while ((i < 1000)); do ((i++)); done; echo $i'"),
            ("gawk", "exec /usr/bin/gawk 'BEGIN { for (i = 0; i < 200000; i++) a[i] = i * i; n = asort(a); print n, a[n], length(sprintf(\"%1000d\", 7)) }'"),
            ("jq", "echo '{\"a\":[3,1,2],\"b\":{\"c\":\"text\"}}' | /usr/bin/jq -cM '(.a | sort), .b, ([range(50000)] | add)'"),
            ("lua", "exec /usr/bin/lua5.4 -e 'local t = {} for i = 1, 300000 do t[i] = {i} end print(#t) t = nil collectgarbage() print(collectgarbage(\"count\") < 1000)
local c = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end) print(c(), c(), c(), string.rep(\"x\", 10))'"),
            ("python", "cat() { /busybox cat; }
cat >/tmp/p.py <<END
import gc, os, sys, threading, subprocess, signal
class Node:
    def __init__(self): self.me = self
for _ in range(100000): Node()
print(gc.collect() >= 0, sum(i * i for i in range(200000)))
total = [0] * 4
def work(k):
    for i in range(20000): total[k] += i
threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]; print(total)
pid = os.fork()
if pid == 0: os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(subprocess.run(['/busybox', 'echo', 'child'], stdout=subprocess.PIPE).stdout)
signal.signal(signal.SIGUSR1, lambda s, f: print('signal', s)); os.kill(os.getpid(), signal.SIGUSR1)
with open('/tmp/py', 'w') as f: f.write('a' * 100000)
print(os.stat('/tmp/py').st_size, sorted(os.listdir('/tmp'))); os.remove('/tmp/py')
END
exec /usr/bin/python3.11 /tmp/p.py"),
            ("ripgrep", "cd /tmp; for i in 1 2 3 4 5 6 7 8; do /busybox mkdir -p d$i; /busybox seq 1 5000 >d$i/f; done
/usr/bin/rg -j 4 -c '^4.*2$' d1 d2 d3 d4 d5 d6 d7 d8 | /busybox sort; s=$?; /busybox rm -r d?; exit $s"),
            ("go-gofmt", "cd /tmp; { echo 'package  main'; for i in $(/busybox seq 1 3000); do echo \"func f$i( a  int )int{ return a+ $i }\"; done; } >g.go
GOMAXPROCS=4 GOGC=5 /usr/lib/go-1.19/bin/gofmt g.go | /busybox md5sum; s=$?; /busybox rm g.go; exit $s"),
            ("sqlite", "cd /tmp; export HOME=/tmp; /usr/bin/sqlite3 a.db 'create table t(a integer primary key, b); with recursive c(x) as (select 1 union all select x+1 from c where x<5000)
insert into t select x, x*x from c; create index i on t(b); select count(*), sum(b) from t; begin; delete from t where a > 100; rollback; select count(*) from t; vacuum; pragma integrity_check;'
/usr/bin/sqlite3 a.db 'select b from t where a = 77'; s=$?; /busybox rm a.db; exit $s"),
            ("sort-parallel", "/busybox seq 1 200000 | /busybox tac | /usr/bin/sort -n --parallel=4 -S 1M -T /tmp | /busybox md5sum"),
        ],
    },
    Family {
        name: "Allocators",
        packages: &["libjemalloc2", "libmimalloc2.0", "libtcmalloc-minimal4", "lua5.4", "python3.11-minimal"],
        files: &[
            "usr/lib/aarch64-linux-gnu/libjemalloc.so.2",
            "usr/lib/aarch64-linux-gnu/libmimalloc.so.2.0",
            "usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4",
            "usr/bin/lua5.4",
            "usr/bin/python3.11",
            "usr/lib/python3.11",
        ],
        scripts: &[
            ("jemalloc", concat!(preload!("libjemalloc.so.2"), strings!(), " || exit\nPYTHONMALLOC=malloc exec ", threads!())),
            ("mimalloc", concat!(preload!("libmimalloc.so.2.0"), strings!(), " || exit\nPYTHONMALLOC=malloc exec ", threads!())),
            ("tcmalloc", concat!(preload!("libtcmalloc_minimal.so.4"), "exec ", strings!())),
            ("glibc-malloc", concat!("exec env PYTHONMALLOC=malloc ", threads!())),
        ],
    },
    Family {
        name: "Tests of memory",
        packages: &["stress-ng", "memtester"],
        files: &["usr/bin/stress-ng", "usr/sbin/memtester"],
        scripts: &[
            ("memtester", "/usr/sbin/memtester 1M 1 >/tmp/log 2>&1; s=$?; /busybox grep -c ': ok' /tmp/log; exit $s"),
            ("stress-ng-bigheap", "exec /usr/bin/stress-ng -q --bigheap 2 --bigheap-ops 200 --bigheap-growth 64K --verify"),
            ("stress-ng-brk", "exec /usr/bin/stress-ng -q --brk 4 --brk-ops 2000 --verify"),
            ("stress-ng-clone", "exec /usr/bin/stress-ng -q --clone 2 --clone-ops 100 --verify"),
            ("stress-ng-fork", "exec /usr/bin/stress-ng -q --fork 4 --fork-ops 200 --verify"),
            ("stress-ng-futex", "exec /usr/bin/stress-ng -q --futex 4 --futex-ops 500 --verify"),
            ("stress-ng-malloc", "exec /usr/bin/stress-ng -q --malloc 4 --malloc-ops 2000 --malloc-bytes 4M --verify"),
            ("stress-ng-memfd", "exec /usr/bin/stress-ng -q --memfd 2 --memfd-ops 20 --memfd-bytes 4M --verify"),
            ("stress-ng-mincore", "exec /usr/bin/stress-ng -q --mincore 2 --mincore-ops 200 --verify"),
            ("stress-ng-mlock", "exec /usr/bin/stress-ng -q --mlock 2 --mlock-ops 100 --verify"),
            ("stress-ng-mmap", "exec /usr/bin/stress-ng -q --mmap 2 --mmap-ops 4 --mmap-bytes 2M --verify"),
            ("stress-ng-mmapfork", "exec /usr/bin/stress-ng -q --mmapfork 1 --mmapfork-ops 4 --mmapfork-bytes 8M --verify"),
            ("stress-ng-pipe", "exec /usr/bin/stress-ng -q --pipe 2 --pipe-ops 2000 --verify"),
            ("stress-ng-fault", "exec /usr/bin/stress-ng -q --fault 2 --fault-ops 500 --verify"),
            ("stress-ng-userfaultfd", "exec /usr/bin/stress-ng -q --userfaultfd 2 --userfaultfd-ops 2000 --userfaultfd-bytes 1M --verify"),
            ("stress-ng-vm", "exec /usr/bin/stress-ng -q --vm 2 --vm-ops 40 --vm-bytes 4M --verify"),
        ],
    },
];

/// Of Linux's own tests what neither kernel is to run: programs that others run, and one without an end.
pub(super) const LEFT_OUT: [&str; 2] = ["mm/transhuge-stress", "pidfd/pidfd_exec_helper"];

/// Why a program passes on Linux and not here.
pub(super) const REASONS: [(&str, &str); 33] = [
    ("arm64-abi-ptrace", "there is no `ptrace`"),
    ("arm64-mte-check_hugetlb_options", "there is no hugetlbfs"),
    ("clone3-clone3", "there are no name spaces"),
    ("clone3-clone3_set_tid", "there is no `/proc/sys/kernel/pid_max`; no caller chooses numbers"),
    ("filesystems-eventfd-eventfd_test", "there is no `/proc/PID/fdinfo`"),
    ("futex-functional-futex_numa_mpol", "futexes know no nodes"),
    ("futex-functional-futex_priv_hash", "there is no priority inheritance"),
    ("futex-functional-futex_requeue_pi", "there is no priority inheritance"),
    ("futex-functional-futex_requeue_pi_mismatched_ops", "there is no priority inheritance"),
    ("futex-functional-futex_requeue_pi_signal_restart", "there is no priority inheritance"),
    ("futex-functional-futex_wait_timeout", "there is no priority inheritance"),
    ("futex-functional-robust_list", "there is no unlock of robust futexes by the kernel, and no priority inheritance"),
    ("memfd-memfd_test", "there is no `/proc/PID/fd`"),
    ("mm-cow", "there is no `vmsplice`"),
    ("mm-guard-regions", "`smaps` does not show that an area may have guards"),
    ("mm-hugetlb-read-hwpoison", "there is no hugetlbfs"),
    ("mm-map_populate", "there are no sockets"),
    ("mm-merge", "there is no `PROCMAP_QUERY`"),
    ("mm-mseal_test", "nothing is mapped at address 0"),
    ("mm-thuge-gen", "there is no hugetlbfs"),
    ("pidfd-pidfd_autoreap_test", "there is no `PR_SET_NO_NEW_PRIVS`, and there are no sockets"),
    ("pidfd-pidfd_bind_mount", "there are no name spaces"),
    ("pidfd-pidfd_fdinfo_test", "there are no name spaces"),
    ("pidfd-pidfd_file_handle_test", "there are no name spaces"),
    ("pidfd-pidfd_getfd_test", "there is no `pidfd_getfd`"),
    ("pidfd-pidfd_info_test", "there are no commands of pidfds, and no sockets"),
    ("pidfd-pidfd_open_test", "there are no commands of pidfds"),
    ("pidfd-pidfd_setattr_test", "there are no name spaces"),
    ("pidfd-pidfd_setns_test", "there are no name spaces"),
    ("pidfd-pidfd_xattr_test", "there are no name spaces"),
    ("stress-ng-brk", "there is no `capset`, which it tells"),
    ("stress-ng-clone", "there is no `capset`, which it tells"),
    ("stress-ng-fork", "there is no `capset`, which it tells"),
];
