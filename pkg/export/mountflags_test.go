package export

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckMountFlags(t *testing.T) {
	for _, c := range []struct {
		fsType string
		flags  string // one option each, blanks between
	}{
		{"ext4", ""},
		{"ext4", "ro noatime nodiratime lazytime nodev nosuid noexec discard sync dirsync"},
		{"ext4", "data=ordered data=journal commit=1 commit=300 errors=remount-ro errors=continue stripe=16 journal_ioprio=7 init_itable init_itable=10 prjquota"},
		{"xfs", "rw nouuid inode64 logbufs=8 logbsize=256k allocsize=64M largeio uquota gqnoenforce nodiscard attr2"},
		{"btrfs", "compress compress=zstd compress=zstd:15 compress-force=zlib:9 compress=no discard=async discard=sync discard space_cache=v2 subvol=/a/b subvol=a subvolid=256 max_inline=2048 thread_pool=4 commit=30"},
		{"ext4", `context="system_u:object_r:container_file_t:s0:c12,c34" fscontext=system_u:object_r:x_t:s0-s0:c0.c1023 defcontext="a:b:c" rootcontext="a:b:c:s0,s1"`},
	} {
		if err := CheckMountFlags(c.fsType, strings.Fields(c.flags)); err != nil {
			t.Errorf("%s %s: %v", c.fsType, c.flags, err)
		}
	}
}

func TestCheckMountFlagsRefused(t *testing.T) {
	all := []string{
		"", " ", "bind", "rbind", "remount", "move", "loop", "loop=/dev/loop3", "offset=4096", "sizelimit=1", "x-systemd.automount",
		"X-mount.mkdir", "x-mount.idmap=/proc/1/ns/user", "helper=x", "uhelper=x", "nobarrier", "barrier=0", "norecovery", "device=/dev/sda",
		"suid", "dev", "user", "uid=0", "gid=0", "umask=0", "shared", "rshared", "private", "defaults", "_netdev", "nofail",
		"ro,bind", "noatime,nobarrier", "ro\x00", "ro\n", "ro ", " ro", "RO", "ro=1", "noatime=", "discard=", "commit=5,bind",
		"context=", `context=""`, `context="`, `context=a,b`, `context="a,b`, `context=a,b"`, `context="a",bind`, `context="a"b"`,
		"context=\"a\n\"", `context="a b"`, `context='a,b'`, "context", "seclabel", "ro\u00e9", strings.Repeat("x", 5000),
	}
	perType := map[string][]string{
		"ext4": {
			"data=writeback", "data=", "data", "noload", "errors=panic", "commit=0", "commit=301", "commit=+5", "commit=-1", "commit=5s", "commit=1..2",
			"commit=99999999999999999999", "journal_async_commit", "noauto_da_alloc", "usrjquota=aquota.user", "sb=8193", "nouuid", "compress",
			"journal_dev=1", "journal_path=/dev/sda", "resuid=1", "dax", "abort", "stripe=16|17",
		},
		"xfs":   {"logdev=/dev/sda", "rtdev=/dev/sda", "logbufs=1", "logbufs=9", "logbsize=0", "allocsize=64kk", "allocsize=k", "allocsize=1t", "dax", "data=ordered", "subvol=a"},
		"btrfs": {"nodatacow", "nodatasum", "nobarrier", "degraded", "rescue=all", "nologreplay", "fatal_errors=panic", "compress=zstd:16", "compress=zstd:0", "compress=zstd:", "compress=gzip", "subvol=", "subvol=../x", "subvol=a/../../b", "subvol=a,device=/dev/sda", `subvol="a"`, "subvol=a b", "subvolid=x", "space_cache=v1", "space_cache", "clear_cache", "discard=always", "device=/dev/loop0", "norecovery", "nouuid"},
	}
	for fsType, flags := range perType {
		for _, flag := range append(flags, all...) {
			err := CheckMountFlags(fsType, []string{"ro", flag, "noatime"})
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), fsType) {
				t.Errorf("%s %q: %v", fsType, shortened(flag), err)
			}
			if err != nil && len(err.Error()) > 3000 {
				t.Errorf("%q: message of %d bytes", shortened(flag), len(err.Error()))
			}
		}
	}
	for _, fsType := range []string{"", "vfat", "ext3"} {
		if err := CheckMountFlags(fsType, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("type %q: %v", fsType, err)
		}
	}
}

// TestMountFlagMessages: the message names the flag and what is allowed, of the same
// name if there is such.
func TestMountFlagMessages(t *testing.T) {
	err := CheckMountFlags("ext4", []string{"noatime", "data=writeback"})
	if want := `mount flag "data=writeback": invalid argument: ext4 allows data=ordered|journal`; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	err = CheckMountFlags("xfs", []string{"nobarrier"})
	if err == nil || !strings.Contains(err.Error(), `"nobarrier"`) || !strings.Contains(err.Error(), "noatime, ") || !strings.Contains(err.Error(), "logbufs=2..8") {
		t.Errorf("%v", err)
	}
}
