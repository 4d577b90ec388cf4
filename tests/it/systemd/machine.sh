#!/usr/bin/env bash
# A machine that systemd runs, with the files of this one beneath it: nothing that it writes is kept, and of this machine's
# own units it has none. To be called in namespaces of its own:
#
#     unshare --kill-child --mount --pid --fork --uts --ipc --cgroup machine.sh FOLDER SCRIPT SEEN
#
# Runs SCRIPT there as root, within FOLDER, which both machines see; SCRIPT's output is FOLDER/script.log, that of each unit
# FOLDER/UNIT.log. SEEN is a folder that is there too, though it may lie below /tmp. Ends when the script does, with its exit
# code in FOLDER/code. The network is this machine's.
set -euo pipefail
folder=$1 script=$2 seen=$3
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
root=/mnt/root
[[ $(stat -f -c %T "$root") == overlayfs ]]

mount -t proc proc "$root/proc"
# No setting of this machine's kernel is changed.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/sys/fs"
mkdir "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for place in run tmp dev; do mount -t tmpfs tmpfs "$root/$place"; done
for device in null zero full random urandom tty; do
  mknod -m 666 "$root/dev/$device" c $((0x$(stat -c %t "/dev/$device"))) $((0x$(stat -c %T "/dev/$device")))
done
mkdir "$root"/dev/{shm,pts,mqueue,hugepages}
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mkdir -p "$root/srv/shared"
mount --bind "$folder" "$root/srv/shared"
mkdir -p "$root$seen"
mount --bind "$seen" "$root$seen"
mount -o remount,bind,ro "$root$seen"

# systemd with its targets, and nothing that this machine starts.
rm -rf "$root"/etc/systemd/system "$root"/usr/lib/systemd/system/*.wants "$root"/usr/lib/systemd/system-generators
printf '%032d\n' 1 >"$root/etc/machine-id"
units=$root/etc/systemd/system
mkdir -p "$units/service.d"
printf '[Service]\nStandardOutput=append:/srv/shared/%%N.log\nStandardError=inherit\n' >"$units/service.d/log.conf"
cat >"$units/script.service" <<UNIT
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
WorkingDirectory=/srv/shared
Environment=HOME=/root
ExecStart=/bin/bash -c 'bash -eEuo pipefail $script; echo \$\$? >code'
TimeoutStartSec=180
UNIT
# Not by chroot, in which no namespace of users can be made, as the units want.
mkdir -p "$root/srv/before"
cd "$root"
pivot_root . srv/before
cd /
umount --lazy /srv/before
# As systemd finds a real machine, and counts on where it mounts credentials.
mount --make-rshared /
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=other \
  /lib/systemd/systemd --system --unit=script.service --log-target=console --log-level=warning
