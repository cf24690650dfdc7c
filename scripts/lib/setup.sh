# Set-up shared by scripts/serve, scripts/check and scripts/bench; sourced by them, never run.
#
# Owns: system packages, the virtual environment .venv and the build of the native code in it.
# Every function may run any number of times. What has been done is known without asking apt or pip:
# - system packages: one dpkg-query (some 20 ms);
# - .venv: a stamp file in it, holding a hash of everything that the installation came from. The
#   files' times are looked at too, because tests/conftest.py refuses an extension that is older
#   than its sources, and switching branches makes sources newer without changing them.
# The output of a step is kept in a log that is shown only when the step fails.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV=$ROOT/.venv

# cmake and ninja would come from PyPI if they were missing, at 30 MB for every build of the
# extension in its throw-away environment; Debian's are older but enough, and stay.
PYTHON_PACKAGES=(python3 python3-venv python3-dev)
BUILD_PACKAGES=(gcc libc6-dev libisal-dev liblz4-dev libzstd-dev libssl-dev cmake ninja-build)
CLIENT_PACKAGES=(
    libnbd-bin python3-libnbd  # nbdinfo, nbdcopy, nbdsh, nbdfuse; the binding for the test scripts
    qemu-utils qemu-block-extra  # qemu-img, qemu-io, qemu-nbd to compare with; the iscsi driver
    libiscsi-bin               # iscsi-ls, iscsi-inq, iscsi-test-cu, iscsi-perf
    fio nbd-client nbd-server nbdkit
    fuse3 e2fsprogs mount      # ext4 on a volume, and small file systems that fill up
    openssl gnutls-bin         # certificates, PSK files
    systemd                    # systemd-socket-activate
    etcd-server                # the MetaStore of a cluster
    curl                       # the control API by hand
    procps git
)
# What makes and runs the virtual machine of scripts/check --kernel. The guest's own packages are
# unpacked below build/kernel and not installed.
KERNEL_PACKAGES=(qemu-system-x86 binutils cpio kmod util-linux)

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# quietly TITLE COMMAND...: one line for the step, its output only if it fails.
quietly() {
    local title=$1 log status=0
    shift
    log=$(mktemp)
    say "==> $title"
    "$@" </dev/null >"$log" 2>&1 || status=$?
    if ((status)); then
        cat "$log" >&2
        rm -f "$log"
        die "$title: failed with status $status (${1##*/}); its output is above"
    fi
    rm -f "$log"
}

# Sets `missing` to those of the named packages that are not installed.
find_missing_packages() {
    local installed package
    # dpkg-query fails when one of the names is unknown to it, having listed the others.
    installed=" $({ dpkg-query -W -f '${db:Status-Status}=${Package}\n' "$@" 2>/dev/null || true; } |
        sed -n 's/^installed=//p' | tr '\n' ' ')"
    missing=()
    for package in "$@"; do
        [[ $installed == *" $package "* ]] || missing+=("$package")
    done
}

refresh_lists() {
    local as_root=()
    ((EUID == 0)) || as_root=(sudo -n)
    quietly "apt-get update" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update
}

need_packages() {
    local missing
    if ! command -v dpkg-query >/dev/null; then
        say "no dpkg here: make sure that the counterparts of these Debian packages are installed: $*"
        return
    fi
    find_missing_packages "$@"
    ((${#missing[@]})) || return 0
    local as_root=()
    if ((EUID != 0)); then
        sudo -n true 2>/dev/null ||
            die "missing system packages, install them with: sudo apt-get install ${missing[*]}"
        as_root=(sudo -n)
    fi
    refresh_lists
    quietly "apt-get install ${missing[*]}" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}"
}

# need_unpacked PACKAGE PROGRAM: a program of a package whose installation would start a service, or
# bring much along; unpacked below build/, in a folder that is added to PATH.
need_unpacked() {
    local folder=$ROOT/build/unpacked/$1
    if [[ ! -x $folder/$2 ]]; then
        mkdir -p "$folder"
        apt-cache show "$1" >/dev/null 2>&1 || refresh_lists
        quietly "fetching $1 for ${2##*/}" env -C "$folder" sh -c \
            'apt-get download "$0" && dpkg -x "$0"_*.deb . && rm "$0"_*.deb' "$1"
    fi
    PATH=$PATH:$folder/$(dirname "$2")
}

usable_python() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Sets `python`: $PYTHON if given, else the system's, else another python3 of 3.11 or newer.
choose_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        usable_python "$PYTHON" ||
            die "PYTHON=$PYTHON: not a Python of 3.11 or newer with venv; unset it or name another"
        python=$PYTHON
        return
    fi
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if usable_python "$candidate"; then
            python=$candidate
            return
        fi
    done
    die "no Python of 3.11 or newer with venv found; install one and name it: PYTHON=/path/to/python3"
}

# The hash of what the environment is made from: sources of the build, interpreter, place.
environment_hash() {
    {
        printf '%s\n' "$ROOT" "$python" "${PYTHON_PACKAGES[*]} ${BUILD_PACKAGES[*]}"
        "$python" -c 'import sys; print(sys.version)'
        cd "$ROOT"
        find pyproject.toml native -type f -not -name '*.py[co]' -print0 | sort -z |
            xargs -0 sha256sum
    } | sha256sum
}

# fresh STAMP HASH: is what the stamp stands for still so?
fresh() {
    [[ -f $1 && $(<"$1") == "$2" ]] &&
        [[ -z $(find "$ROOT/pyproject.toml" "$ROOT/native" -type f -newer "$1" -print -quit) ]]
}

# need_environment run|dev: .venv with blockd (and the tools for checks) installed and built.
need_environment() {
    local hash target=. stamps=("$VENV/.blockd-run")
    if [[ $1 == dev ]]; then
        target='.[dev]'
        stamps+=("$VENV/.blockd-dev")
    fi
    hash=$(environment_hash)
    if fresh "${stamps[-1]}" "$hash"; then
        return
    fi
    rm -f "$VENV/.blockd-run" "$VENV/.blockd-dev"
    if ! "$VENV/bin/python" -c '' 2>/dev/null ||
        [[ $(readlink -f "$VENV/bin/python") != "$(readlink -f "$("$python" -c 'import sys; print(sys.executable)')")" ]]; then
        quietly "creating .venv with $python" "$python" -m venv --clear "$VENV"
    fi
    local began
    began=$(mktemp)
    quietly "building and installing blockd into .venv" \
        env -C "$ROOT" "$VENV/bin/python" -m pip install --disable-pip-version-check -e "$target"
    local stamp
    for stamp in "${stamps[@]}"; do
        printf '%s\n' "$hash" >"$stamp"
        touch -r "$began" "$stamp" # a source saved during the build is newer than the stamp
    done
    rm -f "$began"
}

# set_up run|dev [PACKAGE...]: all of it, and these packages. One at a time per checkout.
set_up() {
    local python packages=("${BUILD_PACKAGES[@]}" "${@:2}")
    [[ -n ${PYTHON:-} ]] || packages=("${PYTHON_PACKAGES[@]}" "${packages[@]}")
    mkdir -p "$ROOT/build"
    exec 9>"$ROOT/build/.setup.lock"
    flock 9
    need_packages "${packages[@]}"
    choose_python
    need_environment "$1"
    exec 9>&- # the daemon must not inherit the lock
}
