# What the jobs have in common: named checks, waiting for a state, bytes that come back.
PASSED=0 FAILED=0

# check NAME COMMAND ... runs a command and says how it went; the job goes on either way.
check() {
	local name=$1
	shift
	if "$@" > /tmp/said 2>&1; then
		PASSED=$((PASSED + 1))
		echo "PASS $name"
	else
		FAILED=$((FAILED + 1))
		echo "FAIL $name"
		tail -5 /tmp/said | sed 's/^/  | /'
	fi
}

# within SECONDS COMMAND ... asks until the command succeeds.
within() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.2
	done
}

# returns DEVICE: 8 MiB written past the page cache are what is read past it.
returns() {
	[ -b "$1" ] || { echo "no block device: ${1:-none}" && return 1; }
	dd if=/dev/urandom of=/tmp/written bs=1M count=8 status=none &&
		dd if=/tmp/written of="$1" bs=256k oflag=direct status=none &&
		dd if="$1" of=/tmp/read bs=256k count=32 iflag=direct status=none &&
		cmp /tmp/written /tmp/read
}

# survives DEVICE: a file system takes 64 MiB, is unmounted and mounted, has them and is sound.
survives() {
	mkfs.ext4 -q "$1" && mkdir -p /mnt && mount -t ext4 "$1" /mnt || return
	dd if=/dev/urandom of=/tmp/file bs=1M count=64 status=none
	cp /tmp/file /mnt/file && umount /mnt && mount -t ext4 "$1" /mnt || return
	echo 3 > /proc/sys/vm/drop_caches
	cmp /tmp/file /mnt/file && umount /mnt && e2fsck -fn "$1"
	local status=$?
	rm -f /tmp/file
	return $status
}

# load DEVICE ARGUMENTS ...: random writes of fio, each with a checksum in it that is read back.
load() {
	local device=$1
	shift
	fio --name=load --filename="$device" --direct=1 --rw=randwrite --bs=4k --ioengine=libaio \
		--verify=crc32c --verify_fatal=1 "$@"
}
