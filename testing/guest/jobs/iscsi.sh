# The kernel's iSCSI initiator and dm-multipath against a target outside, over a path that stays and one that is
# cut under load and comes back.
modprobe -a iscsi_tcp sd_mod sg scsi_dh_alua
echo InitiatorName=iqn.2026-01.io.weft:guest > /etc/iscsi/initiatorname.iscsi
iscsid

discover() { iscsiadm -m discovery -t st -p "$portal1" | grep "$target"; }
# The node's own answer names an address that means another machine here, so a record is made by hand.
record() {
	local setting
	iscsiadm -m node -o new -T "$target" -p "$1,1" || return
	for setting in node.session.timeo.replacement_timeout=5 'node.conn[0].timeo.noop_out_interval=1' \
		'node.conn[0].timeo.noop_out_timeout=2'; do
		iscsiadm -m node -T "$target" -p "$1" -o update -n "${setting%%=*}" -v "${setting#*=}" || return
	done
}
login() { record "$1" && iscsiadm -m node -T "$target" -p "$1" --login && udevadm settle; }
attached() { iscsiadm -m session -P3 | sed -n 's/.*Attached scsi disk \(sd[a-z]*\).*State: running.*/\1/p'; }

check "discovery names the target" within 20 discover
rm -rf /etc/iscsi/nodes/* /etc/iscsi/send_targets/*
check "login" login "$portal1"
disk=/dev/$(attached | head -1)
check "inquiry says who made it" sh -c "sg_inq $disk | grep -i weft"
check "its identity is a NAA name" sh -c "sg_inq -p 0x83 $disk | grep -i naa"
check "ext4: 64 MiB survive a remount, fsck is clean" survives "$disk"
check "fio: random writes verify" load "$disk" --iodepth=16 --size=32M --do_verify=1
check "discard" blkdiscard -l 1048576 "$disk"

cat > /etc/multipath.conf << 'CONF'
defaults {
  find_multipaths off
  polling_interval 1
  max_polling_interval 2
  path_grouping_policy multibus
  no_path_retry 12
  user_friendly_names no
}
CONF
modprobe -a dm_multipath dm_round_robin dm_service_time
check "login over a second path" login "$portal2"
multipathd
paths() { [ "$(multipath -ll 2> /dev/null | grep -cE "$1")" = "$2" ]; }
map() { ls /dev/mapper/* | grep -v control; }
check "two paths are one disk" within 40 paths 'active ready' 2
check "the disk has a name" within 20 map
disk=$(map | head -1)
load "$disk" --iodepth=4 --size=64M --do_verify=1 --time_based=1 --runtime=20 --eta=never > /tmp/load 2>&1 &
under=$!
written() { awk '{ print $5 }' /sys/block/"$(basename "$(readlink -f "$disk")")"/stat; }
begun=$(written)
flows() { [ "$(written)" -gt $((begun + 500)) ]; }
check "the load flows" within 20 flows
echo "PATH cut"
check "the cut path is found out" within 30 paths 'failed|faulty' 1
check "the other serves" paths 'active ready' 1
echo "PATH mend"
check "the load saw no error" wait $under
check "the path comes back" within 90 paths 'active ready' 2
check "bytes come back over both" returns "$disk"
multipath -F
kill "$(pidof multipathd)"
check "logout" iscsiadm -m node -u
check "nothing hung in the kernel" sh -c "! dmesg | grep -iE 'hung|blocked for|call trace'"
