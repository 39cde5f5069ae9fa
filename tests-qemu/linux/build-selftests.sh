#!/bin/sh
# Builds Linux's own tests (kselftests) of memory and of what stands beside it, as they are, by their own makefiles:
# build-selftests.sh OUT.
#
# The source is the distribution's package of a pinned Linux, taken from the mirror that this machine's apt uses; the
# headers are that source's. The programs are static, for arm64, and below OUT/programs; OUT/list has their names. Those
# that want libraries of others (libcap, libnuma) are not built. OUT keeps what was fetched, so a second run builds nothing.
#
# Exit status: 0, or 77 where the source or the compiler cannot be had, with the reason as the last line.
set -eu

version=7.2.13-1
sum=30a8c5fc63f9028a62e6d7b3f7f43bee67425dbce2a05fceba83f9b87c92083d
package=linux-source-7.2_${version}_all.deb
targets='mm futex clone3 membarrier memfd mincore mseal_system_mappings filesystems/eventfd pidfd arm64'

skip() {
    printf '%s\n' "$*"
    exit 77
}

mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$out"
# Others that want the same wait.
exec 9>lock
flock 9
if [ "$(cat built 2>/dev/null)" = "$version" ]; then exit 0; fi

compiler=aarch64-linux-gnu-gcc
if ! command -v "$compiler" >/dev/null 2>&1 || ! command -v make >/dev/null 2>&1; then
    command -v apt-get >/dev/null 2>&1 || skip "there is no $compiler, and no apt-get to install it"
    [ "$(id -u)" -eq 0 ] || skip "there is no $compiler: sudo apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross make"
    apt-get -qq update >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        gcc-aarch64-linux-gnu libc6-dev-arm64-cross make xz-utils >apt.log 2>&1 </dev/null ||
        skip "$compiler cannot be installed: $(tail -n 1 apt.log)"
fi

if ! [ -e "$package" ]; then
    release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release 2>/dev/null | tr -d '"')
    # shellcheck disable=SC2016 # apt's own placeholders
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
        sed -n "s/ $release\$//p" | head -n 1)
    [ -n "$mirror" ] || skip "apt has no mirror of $release, where $package might be"
    # It checks the sum, and goes through the proxy that apt goes through.
    /usr/lib/apt/apt-helper download-file "${mirror%/}/pool/main/l/linux/$package" "$out/part" "SHA256:$sum" \
        >download.log 2>&1 || skip "$package cannot be fetched: $(tail -n 1 download.log)"
    mv part "$package"
fi

rm -rf source
mkdir source
dpkg-deb --fsys-tarfile "$package" | tar -xOf - --wildcards '*/linux-source-*.tar.xz' >source.tar.xz
tar -xf source.tar.xz -C source --strip-components=1 --wildcards --no-wildcards-match-slash \
    '*/Makefile' '*/Kbuild' '*/scripts' '*/include' '*/usr' '*/arch/arm64' '*/tools/include' '*/tools/scripts' \
    '*/tools/arch/arm64' '*/tools/lib' '*/tools/build' '*/tools/testing/selftests' '*/mm/gup_test.h'
rm source.tar.xz
make -s -C source headers ARCH=arm64 >headers.log 2>&1
touch begun
# Some are not built: `-k`, and no word about them here.
make -k -j"$(nproc)" -C source/tools/testing/selftests ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- \
    KHDR_INCLUDES="-isystem $out/source/usr/include" LDFLAGS=-static LDLIBS='-lrt -lpthread -lm' \
    TARGETS="$targets" ARM64_SUBTARGETS='mte abi bti tags' >make.log 2>&1 || true
cd source/tools/testing/selftests
find . -type f -perm -u+x -newer "$out/begun" ! -name '*.sh' ! -name '*.so' |
    sed 's,^\./,,' | sort >"$out/list"
while read -r program; do
    mkdir -p "$out/programs/$(dirname "$program")"
    aarch64-linux-gnu-strip -o "$out/programs/$program" "$program"
done <"$out/list"
cd "$out"
[ -e programs/mm/uffd-unit-tests ]
rm -rf source
printf '%s\n' "$version" >built
