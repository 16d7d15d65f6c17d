package main

import (
	"syscall"
)

const (
	// mostVolumes is the highest attach limit that a node takes by itself: as many as
	// were attached and written to at once (docs/decisions/0006-attach-limit.md).
	mostVolumes = 512
	// filesForOthers are descriptors left to chunk files, journal and sockets;
	// filesPerVolume what an attached volume needs, and as many again for the
	// journal's segments.
	filesForOthers = 512
	filesPerVolume = 6
)

// defaultMaxVolumes is how many volumes this process can keep attached: what was tried,
// or less if it may not open enough files.
func defaultMaxVolumes() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return mostVolumes
	}
	return volumesFor(files.Cur)
}

func volumesFor(files uint64) int {
	if files >= filesForOthers+mostVolumes*filesPerVolume {
		return mostVolumes
	}
	if files <= filesForOthers+filesPerVolume {
		return 1
	}
	return int((files - filesForOthers) / filesPerVolume)
}
