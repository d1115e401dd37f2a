#!/usr/bin/env bash
# docker_engine.sh PIDFILE: sees to it that a Docker engine answers. One that does is left alone; else, as root on a Debian
# without systemd, Debian's is installed and started, and its process id written to PIDFILE, to stop it by.
# Where no engine can run, one line says why.
set -euo pipefail
pidfile=${1:?docker_engine.sh PIDFILE}
log=$(dirname "$pidfile")/dockerd.log
fail() { echo "no Docker engine can run here: $*" >&2; exit 1; }
answers() { docker version >/dev/null 2>&1; }

if ! answers; then
    [ "$(id -u)" = 0 ] || fail "none answers (is it started, and are you in the group docker?), and only root can start one"
    if ! command -v dockerd >/dev/null || ! command -v docker-compose >/dev/null || ! command -v mmdebstrap >/dev/null; then
        command -v apt-get >/dev/null || fail "dockerd isn't installed, and there is no apt-get to install it with"
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            docker.io docker-compose cgroupfs-mount iptables iproute2 mmdebstrap >/dev/null 2>"$log" ||
            fail "apt-get couldn't install docker.io ($(tail -1 "$log"))"
    fi
    mountpoint -q /sys/fs/cgroup || cgroupfs-mount
    setsid dockerd --pidfile "$pidfile" >"$log" 2>&1 &
    started=$!
    for _ in $(seq 300); do
        answers && break
        kill -0 "$started" 2>/dev/null || break
        sleep 0.1
    done
    answers || { kill "$started" 2>/dev/null || :; fail "dockerd doesn't start ($(tail -1 "$log"))"; }
fi
