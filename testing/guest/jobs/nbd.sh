# The kernel's NBD client against a server outside.
modprobe nbd nbds_max=4
attach() { nbd-client -N "$nbd_export" "$@" 10.0.2.2 "$nbd_port" /dev/nbd1; }
ready() { [ "$(blockdev --getsize64 /dev/nbd1 2> /dev/null || echo 0)" -gt 0 ]; }
udevadm settle

check "attach" attach -nonetlink
check "it has its size" within 20 ready
check "bytes come back" returns /dev/nbd1
check "ext4: 64 MiB survive a remount, fsck is clean" survives /dev/nbd1
check "fio: random writes verify" load /dev/nbd1 --iodepth=16 --size=32M --do_verify=1
check "discard" blkdiscard -l 1048576 /dev/nbd1
check "detach" nbd-client -d /dev/nbd1
check "attach over four connections" attach -nonetlink -connections 4
check "it has its size again" within 20 ready
check "bytes come back over four connections" returns /dev/nbd1
check "detach again" nbd-client -d /dev/nbd1
check "nothing hung in the kernel" sh -c "! dmesg | grep -iE 'hung|blocked for|call trace'"
