package export

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The mount flags that users may give a volume. What is not here can endanger the host
// or other volumes (bind, remount, loop, device=, helpers and ID maps), weakens what a
// flush promises without anyone noticing (barriers, writeback, log recovery, checksums
// off), or takes the node down (errors=panic). A word is a name, or name=values:
// alternatives with | between them, where 1..9 is a range of decimal numbers, SIZE a
// number with k, m or g, PATH a path inside the filesystem and LABEL an SELinux
// context, in double quotes if it has commas.
const (
	commonFlags = `ro rw noatime atime nodiratime diratime relatime norelatime strictatime
		nostrictatime lazytime nolazytime sync async dirsync nodev nosuid noexec exec
		discard nodiscard context=LABEL fscontext=LABEL defcontext=LABEL rootcontext=LABEL`

	ext4Flags = `data=ordered|journal commit=1..300 errors=remount-ro|continue data_err=abort
		acl noacl user_xattr stripe=0..2097152 delalloc nodelalloc auto_da_alloc
		dioread_lock dioread_nolock min_batch_time=0..1000000 max_batch_time=0..1000000
		inode_readahead_blks=0..1073741824 journal_ioprio=0..7 journal_checksum
		init_itable=0..1000 init_itable noinit_itable block_validity
		grpid nogrpid bsdgroups sysvgroups
		quota noquota usrquota grpquota prjquota`

	xfsFlags = `logbufs=2..8 logbsize=SIZE allocsize=SIZE inode32 inode64 largeio nolargeio
		swalloc noalign nouuid filestreams attr2 wsync grpid nogrpid bsdgroups sysvgroups
		quota noquota usrquota uquota uqnoenforce grpquota gquota gqnoenforce
		prjquota pquota pqnoenforce`

	btrfsFlags = `compress compress=no|none|lzo|zlib|zlib:1..9|zstd|zstd:1..15
		compress-force compress-force=no|none|lzo|zlib|zlib:1..9|zstd|zstd:1..15
		autodefrag noautodefrag space_cache=v2 ssd nossd ssd_spread nossd_spread
		thread_pool=1..1024 commit=1..300 max_inline=SIZE skip_balance
		flushoncommit noflushoncommit discard=async|sync user_subvol_rm_allowed
		acl noacl subvol=PATH subvolid=0..18446744073709551615`
)

// mountFlags has the words of each type, the common ones first; fixed.
var mountFlags = map[string][]string{
	"ext4":  strings.Fields(commonFlags + " " + ext4Flags),
	"xfs":   strings.Fields(commonFlags + " " + xfsFlags),
	"btrfs": strings.Fields(commonFlags + " " + btrfsFlags),
}

// CheckMountFlags returns ErrInvalid, with the flag and what is allowed instead, unless
// every flag is one that a user may give a filesystem of that type: one option each, as
// after mount -o. The kernel may still refuse it (an option it does not have, quotas that
// the filesystem was not made for). The order and repetitions do not matter here.
func CheckMountFlags(fsType string, flags []string) error {
	words, known := mountFlags[fsType]
	if !known {
		return fmt.Errorf("mount flags for filesystem type %q: %w: types are ext4, xfs, btrfs", shortened(fsType), ErrInvalid)
	}
	for _, flag := range flags {
		if !slices.ContainsFunc(words, func(w string) bool { return wordAllows(w, flag) }) {
			return fmt.Errorf("mount flag %q: %w: %s allows %s", shortened(flag), ErrInvalid, fsType, alternatives(words, flag))
		}
	}
	return nil
}

func shortened(flag string) string { return flag[:min(len(flag), 100)] }

// alternatives are the words with the flag's name, or all if there are none.
func alternatives(words []string, flag string) string {
	name, _, _ := strings.Cut(flag, "=")
	var same []string
	for _, w := range words {
		if n, _, _ := strings.Cut(w, "="); n == name {
			same = append(same, w)
		}
	}
	if len(same) > 0 {
		words = same
	}
	return strings.Join(words, ", ")
}

func wordAllows(word, flag string) bool {
	name, values, valued := strings.Cut(word, "=")
	if !valued {
		return flag == name
	}
	value, ok := strings.CutPrefix(flag, name+"=")
	return ok && slices.ContainsFunc(strings.Split(values, "|"), func(v string) bool { return valueAllows(v, value) })
}

func valueAllows(allowed, value string) bool {
	switch allowed {
	case "SIZE":
		n, err := strconv.ParseUint(strings.TrimRight(value, "kKmMgG"), 10, 31)
		return err == nil && n > 0 && len(strings.TrimLeft(value, "0123456789")) <= 1
	case "PATH":
		return isSubvolume(value)
	case "LABEL":
		return isLabel(value)
	}
	low, high, isRange := strings.Cut(allowed, "..")
	if !isRange {
		return value == allowed
	}
	prefix := strings.TrimRight(low, "0123456789")
	number, ok := strings.CutPrefix(value, prefix)
	n, err := strconv.ParseUint(number, 10, 64)
	return ok && err == nil && n >= bound(low[len(prefix):]) && n <= bound(high)
}

// bound is a number of the tables above.
func bound(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

// isSubvolume tells whether s names a subvolume: printable, without what mount would
// take apart, and without a step upwards.
func isSubvolume(s string) bool {
	bad := func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`,"\`, r) }
	return s != "" && len(s) <= 1024 && !strings.ContainsFunc(s, bad) && !slices.Contains(strings.Split(s, "/"), "..")
}

// isLabel tells whether s is an SELinux context, in double quotes or without commas.
func isLabel(s string) bool {
	bare := strings.TrimSuffix(strings.TrimPrefix(s, `"`), `"`)
	quoted := len(s) == len(bare)+2
	if bare == "" || len(s) > 1024 || !quoted && len(s) != len(bare) {
		return false
	}
	return !strings.ContainsFunc(bare, func(r rune) bool {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !alnum && !strings.ContainsRune("_.:-", r) && !(quoted && r == ',')
	})
}
