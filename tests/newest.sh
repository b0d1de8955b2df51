#!/bin/sh
# Run tests on a Python that this Debian does not have yet: tests/newest.sh 3.15 tests/unit tests/contract
#
# Debian's unstable release is unpacked into .newest/, a folder of this tree, and the tests run in there by chroot
# (as root, in mounts of their own). Nothing is installed in this system. Packages without a wheel for that Python
# are left out; tests that need them fail or are skipped. Needs apt, dpkg, unshare, and uv (`make lint` installs it).
set -eu
version=${1:?name a version, such as 3.15}
shift
cd "$(dirname "$0")/.."
here=$PWD root=$PWD/.newest/root apt=$PWD/.newest/apt
uv=$(readlink -f .venv/bin/uv)

in_root() {
    unshare --mount sh -c '
        root=$1; here=$2; shift 2
        for each in proc sys dev tmp "$here"; do
            mkdir -p "$root/${each#/}"; mount --rbind "/${each#/}" "$root/${each#/}"
        done
        export LC_ALL=C.UTF-8 HOME=/tmp
        exec chroot "$root" sh -c "cd \"\$0\" && exec \"\$@\"" "$here" "$@"' sh "$root" "$here" "$@"
}

if [ ! -e "$root/usr/bin/python$version" ]; then
    mkdir -p "$root" "$apt/state/lists/partial" "$apt/cache/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main" \
        >"$apt/sources.list"
    : >"$apt/status" # so that all dependencies are fetched, whatever this system has
    cat >"$apt/apt.conf" <<END
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
END
    export APT_CONFIG="$apt/apt.conf"
    apt-get update --quiet=2
    apt-get install --quiet=2 --yes --download-only --no-install-recommends \
        "python$version" "python$version-venv" libstdc++6 base-files libc-bin dash coreutils ca-certificates git make procps redis-server
    for each in "$apt"/cache/archives/*.deb; do dpkg --extract "$each" "$root"; done
    unset APT_CONFIG
    cp -L /etc/resolv.conf /etc/hosts /etc/passwd /etc/group "$root/etc/"
    cp -rL /etc/ssl "$root/etc/"
fi

venv=.newest/venv-$version
if [ ! -e "$venv/.installed" ]; then
    mkdir -p "$root/usr/local/bin" "$root/root"
    cp "$uv" "$root/usr/local/bin/uv"
    in_root uv venv --quiet --clear --python "/usr/bin/python$version" "$venv"
    # Without a compiler in there, what has no wheel is left out.
    in_root uv pip install --quiet --compile-bytecode --python "$venv/bin/python" --editable .
    sed -n '/^test = \[/,/^\]/s/^  "\([^"]*\)".*/\1/p' pyproject.toml | while read -r each; do
        in_root uv pip install --quiet --compile-bytecode --python "$venv/bin/python" --only-binary :all: --no-binary windback "$each" \
            </dev/null || echo "left out: $each"
    done
    touch "$venv/.installed"
fi
in_root "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
