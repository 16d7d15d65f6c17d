package attach

// SetSystem replaces what New takes from the machine.
func SetSystem(a *Attachments, loops func() ([]string, error), syncFS func(string) error) {
	a.loopDevices, a.syncFS = loops, syncFS
}
