package driver

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/k8ns/granary/pkg/attach/attachtest"
)

// choices are decisions taken from an input.
type choices struct{ input []byte }

// upTo is a number below n; 0 when the input is used up.
func (c *choices) upTo(n int) int {
	if len(c.input) < 2 {
		c.input = nil
		return 0
	}
	v := int(c.input[0])<<8 | int(c.input[1])
	c.input = c.input[2:]
	return v % n
}

// request makes a request that is in order, and then up to three changes to it.
func (a *arena) request(m rpc, c *choices) proto.Message {
	base := a.base(m, a.subjects[c.upTo(len(a.subjects))], c)
	for range c.upTo(4) {
		req := proto.Clone(base)
		if a.spoil(m, c.upTo(1<<16), req); proto.Size(req) < 3<<20 { // gRPC takes 4 MiB
			base = req
		}
	}
	return base
}

// spoil makes one of the changes to a request of a method.
func (a *arena) spoil(m rpc, i int, req proto.Message) {
	all := a.spoilers[m.name]
	if all == nil {
		all = a.mutations(m.in)
		a.spoilers[m.name] = all
	}
	if len(all) > 0 {
		all[i%len(all)](req.ProtoReflect())
	}
}

// base fills in every field as a CO would.
func (a *arena) base(m rpc, s subject, c *choices) proto.Message {
	req := csiMessage(a.t, string(m.in.FullName()))
	a.fill(req.ProtoReflect(), s, c)
	return req
}

func (a *arena) fill(m protoreflect.Message, s subject, c *choices) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if v := a.good(m, f, s, c); v.IsValid() {
			m.Set(f, v)
		}
	}
}

// good is what a CO would put into a field; the zero Value for nothing.
func (a *arena) good(m protoreflect.Message, f protoreflect.FieldDescriptor, s subject, c *choices) protoreflect.Value {
	switch f.Name() {
	case "volume_capability":
		return protoreflect.ValueOfMessage(proto.Clone(s.c).ProtoReflect())
	case "volume_capabilities":
		list := m.NewField(f)
		list.List().Append(protoreflect.ValueOfMessage(proto.Clone(s.c).ProtoReflect()))
		return list
	case "volume_content_source", "mutable_parameters", "accessible_topology":
		return protoreflect.Value{}
	case "required_bytes":
		return protoreflect.ValueOfInt64(8 << 20)
	case "limit_bytes", "max_entries":
		return protoreflect.Value{}
	}
	switch {
	case f.IsMap():
		return a.goodMap(m, f)
	case f.Kind() == protoreflect.StringKind && !f.IsList():
		return protoreflect.ValueOfString(a.goodText(f, s, c))
	case f.Message() != nil && !f.IsList():
		v := m.NewField(f)
		a.fill(v.Message(), s, c)
		return v
	}
	return protoreflect.Value{}
}

func (a *arena) goodMap(m protoreflect.Message, f protoreflect.FieldDescriptor) protoreflect.Value {
	v := m.NewField(f)
	set := func(key, value string) {
		v.Map().Set(protoreflect.ValueOfString(key).MapKey(), protoreflect.ValueOfString(value))
	}
	switch f.Name() {
	case "secrets":
		set("token", canary)
	case "volume_context", "publish_context":
		set("storage.kubernetes.io/csiProvisionerIdentity", canary)
	case "parameters":
		set("csi.storage.k8s.io/pvc/name", "claim")
	default:
		return protoreflect.Value{}
	}
	return v
}

func (a *arena) goodText(f protoreflect.FieldDescriptor, s subject, c *choices) string {
	switch f.Name() {
	case "volume_id", "source_volume_id":
		return s.handle
	case "snapshot_id":
		return a.snapshot
	case "node_id":
		return node
	case "name":
		return fmt.Sprintf("new-%d", a.named+c.upTo(3))
	case "staging_target_path":
		return s.staging
	case "target_path", "volume_path", "volume_publish_path":
		return s.targets[c.upTo(len(s.targets))]
	}
	return ""
}

// mutation spoils one field of a message.
type mutation func(protoreflect.Message)

// mutations spoil each field below a kind of message in each way.
func (a *arena) mutations(d protoreflect.MessageDescriptor) []mutation {
	var all []mutation
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		for _, v := range a.badValues(f) {
			all = append(all, func(m protoreflect.Message) { v(m, f) })
		}
		if f.Message() == nil || f.IsMap() {
			continue
		}
		for _, deeper := range a.mutations(f.Message()) {
			all = append(all, inside(f, deeper))
		}
	}
	return all
}

// inside spoils the message in a field, or the first one in a list.
func inside(f protoreflect.FieldDescriptor, deeper mutation) mutation {
	return func(m protoreflect.Message) {
		if !f.IsList() {
			deeper(m.Mutable(f).Message())
			return
		}
		list := m.Mutable(f).List()
		if list.Len() == 0 {
			list.AppendMutable()
		}
		deeper(list.Get(0).Message())
	}
}

type setter func(protoreflect.Message, protoreflect.FieldDescriptor)

func sets[T any](wrap func(T) protoreflect.Value, values ...T) []setter {
	var all []setter
	for _, v := range values {
		all = append(all, func(m protoreflect.Message, f protoreflect.FieldDescriptor) { m.Set(f, wrap(v)) })
	}
	return all
}

// badValues are what may be wrong with a field, by its kind and name.
func (a *arena) badValues(f protoreflect.FieldDescriptor) []setter {
	absent := setter(func(m protoreflect.Message, f protoreflect.FieldDescriptor) { m.Clear(f) })
	switch {
	case f.IsMap():
		return append(badMaps(f), absent)
	case f.IsList():
		return append(a.badLists(f), absent)
	}
	switch f.Kind() {
	case protoreflect.StringKind:
		return append(sets(protoreflect.ValueOfString, a.badTexts(f)...), absent)
	case protoreflect.Int64Kind:
		return sets(protoreflect.ValueOfInt64, 0, 1, -1, 1<<20+1, 16<<20, 64<<40, 64<<40+1, math.MaxInt64, math.MaxInt64-1<<20+2, math.MinInt64)
	case protoreflect.Int32Kind:
		return sets(protoreflect.ValueOfInt32, 1, -1, math.MaxInt32, math.MinInt32)
	case protoreflect.EnumKind:
		return sets(protoreflect.ValueOfEnum, 0, 1, 2, 3, 4, 5, 6, 7, 8, -1, 99, math.MaxInt32, math.MinInt32)
	case protoreflect.BoolKind:
		return sets(protoreflect.ValueOfBool, true, false)
	}
	return []setter{absent, func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
		m.Set(f, m.NewField(f)) // there, and empty
	}}
}

// big and huge are longer than anything should be; huge takes its time.
var big, huge = strings.Repeat("x", 1<<15), strings.Repeat("x", 1<<20)

// badMaps have keys that look like good ones, or no end.
func badMaps(f protoreflect.FieldDescriptor) []setter {
	pairs := [][2]string{
		{"", ""}, {"compression", "zstd "}, {"compression", ""}, {"Compression", "zstd"}, {"compression\x00", "zstd"}, {"blockSize", "0512"},
		{"blockSize", "-512"}, {"blockSize", "99999999999999999999"}, {"onFull", "wait\n"}, {"fsType", "ext4"}, {"csi.storage.k8s.io/fstype", "ext4,ro"},
		{"csi.storage.k8s.io/fstype", "xfs"}, {"csi.storage.k8s.io/fstype\n", "xfs"}, {"csi.storage.k8s.io/../x", "y"}, {"csi.storage.k8s.io/node-stage-secret-nam", "x"},
		{"csi-storage-k8s-io/pvc/name", "x"}, {"csi.storage.k8s.io/pvc/name", big}, {big, "x"},
		{"readOnly", "true"}, {"readOnly", "TRUE"}, {TopologyKey, node}, {TopologyKey, "elsewhere"}, {TopologyKey, ""}, {TopologyKey + "x", node},
		{"csi.storage.k8s.io/serviceAccount.tokens", canary},
	}
	if f.Name() == "secrets" || f.Name() == "volume_context" { // nobody looks into them
		pairs = pairs[len(pairs)-2:]
	}
	var all []setter
	for _, p := range pairs {
		switch {
		case f.Name() == "secrets":
			p[1] = canary + p[1]
		case f.Name() == "segments" && p[1] == canary: // no secret: it is told
			continue
		}
		all = append(all, func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(p[0]).MapKey(), protoreflect.ValueOfString(p[1]))
		})
	}
	return append(all, func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
		for i := range 500 {
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(fmt.Sprintf("csi.storage.k8s.io/pvc/name%d", i)).MapKey(), protoreflect.ValueOfString("x"))
		}
	})
}

// badLists are long, or hold what contradicts the first.
func (a *arena) badLists(f protoreflect.FieldDescriptor) []setter {
	if f.Kind() == protoreflect.StringKind {
		var all []setter
		for _, flag := range badFlags {
			all = append(all, func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
				m.Mutable(f).List().Append(protoreflect.ValueOfString(flag))
			})
		}
		return all
	}
	return []setter{
		func(m protoreflect.Message, f protoreflect.FieldDescriptor) { // empty
			m.Mutable(f).List().AppendMutable()
		},
		func(m protoreflect.Message, f protoreflect.FieldDescriptor) { // many
			for range 300 {
				m.Mutable(f).List().AppendMutable()
			}
		},
		func(m protoreflect.Message, f protoreflect.FieldDescriptor) { // many of the same
			list := m.Mutable(f).List()
			for range 300 {
				if list.Len() > 0 {
					list.Append(list.Get(0))
				}
			}
		},
		func(m protoreflect.Message, f protoreflect.FieldDescriptor) { contradict(m.Mutable(f).List()) },
	}
}

// contradict appends a raw capability and one with another filesystem.
func contradict(list protoreflect.List) {
	for _, c := range []*csi.VolumeCapability{blockCap(), mountCap("btrfs"), mountCap("xfs")} {
		raw, _ := proto.Marshal(c)
		if m := list.NewElement().Message(); m.Descriptor() == c.ProtoReflect().Descriptor() {
			_ = proto.Unmarshal(raw, m.Interface())
			list.Append(protoreflect.ValueOfMessage(m))
		}
	}
}

var badFlags = []string{
	"", "bind", "remount", "ro", "ro,rw", "noatime,bind", "noatime\nbind", "noatime ", "nodev\x00", "loop", "loop=/dev/loop0", "errors=panic", "barrier=0",
	"context=a,b", `context="a,b`, `context="system_u:object_r:container_file_t:s0:c1,c2"`, `context="x",bind`, "subvol=../..", "commit=0", "commit=99999999999999999999",
	"helper=x", "X-mount.mkdir", "-o", "uid=0", "device=/dev/sda", big,
}

// badTexts are bad for any text, and for those of a field's name.
func (a *arena) badTexts(f protoreflect.FieldDescriptor) []string {
	any := []string{"", " ", ".", "..", "/", "\x00", "\n", "a\x00b", "%s%n", strings.Repeat("x", 129), big, "\uFFFD", "\U0010FFFF"}
	switch name := string(f.Name()); {
	case name == "name":
		return append(any, hostileNames()...)
	case name == "starting_token":
		return append(any, "1", "-1", `"`, `"a"`, "`a`", "'a'", `"`+huge+`"`, strings.Repeat("9", 2<<20), `"\x00"`, `"\"`)
	case strings.HasSuffix(name, "path"):
		return append(any, a.badPaths()...)
	case strings.HasSuffix(name, "_id"):
		return append(append(any, huge), a.badHandles()...)
	case name == "fs_type":
		return append(any, "ext3", "EXT4", "ext4 ", "ext4,ro", "xfs", "btrfs", "auto", "overlay", "nfs", "../ext4", "ext4\x00")
	}
	return any
}

func hostileNames() []string {
	id := strings.Repeat("0", 31) + "1"
	return []string{
		"used", "snap", "a/b", "/", "../used", "nul\x00", "line\n", "\x1b[2J", "del\x7f", "v-" + id, "s-" + id,
		strings.Repeat("n", 129), strings.Repeat("ü", 65), huge,
	}
}

// badPaths lead to what is not the driver's, or to nothing. Those that are no place of
// their own and empty, new or reached through a directory that is a link are left out:
// the driver has to take a CO's word for where its directories are.
func (a *arena) badPaths() []string {
	in := func(s string) string { return a.in + "/" + s }
	all := []string{
		a.in, a.out, a.out + "/canary", a.out + "/file", in("../out/empty"), in("../out/new"), in("empty/../../out/nothing"),
		in("file"), in("full"), in("full/below"), in("dir"), in("filelink"), in("full-link"), in("full-link/file"), in("dead"), in("round"), in("round/x"), in("file/below"),
		in("no/parent"), in("new"), in("empty/"), in("empty//"), in("./empty"), in("empty/."), "//", "/.", "relative", "./relative", "../relative", "~",
		in("nul\x00"), in("line\nbreak"), in("esc\x1b[2J"), in("space x"), in(`back\slash`), in("ünï"), in("\uFFFD"),
		in(strings.Repeat("n", 255)), in(strings.Repeat("n", 256)), in(strings.Repeat("n", 4000)), in(strings.Repeat("/", 4000)), in(strings.Repeat("d/", 2500)),
		in(strings.Repeat("./", 1500) + "new"), "/" + huge, filepath.Join(a.in, "fresh-staging", "inside"),
	}
	for _, s := range a.subjects {
		all = append(append(all, s.staging, s.staging+"/inside"), s.targets...)
	}
	return all
}

// badHandles name what is not there, not here, or of another kind.
func (a *arena) badHandles() []string {
	good := a.subjects[1].handle
	store, id := attachtest.StoreID[:16], strings.Split(good, ".")[1]
	all := []string{
		noVolume(), "nonsense", id, "used", node, "elsewhere", strings.ToUpper(good), good + " ", good + "\n", good + "\x00", " " + good, good + ".", good + "/..", good + "x",
		Handle{Store: store, ID: id, Node: "elsewhere"}.String(), Handle{Store: "ffffffffffffffff", ID: id, Node: node}.String(),
		Handle{Store: "ffffffffffffffff", ID: id, Node: "elsewhere"}.String(), Handle{Store: store, ID: id, Node: "../../x"}.String(),
		Handle{Store: store, ID: strings.ToUpper(id), Node: node}.String(), Handle{Store: store, ID: id, Node: strings.Repeat("n", 64)}.String(),
		Handle{Store: store, ID: strings.Replace(id, "v-", "s-", 1), Node: node}.String(), Handle{Store: attachtest.StoreID, ID: id, Node: node}.String(), a.snapshot,
		strings.Replace(a.snapshot, ".s-", ".v-", 1), strings.ReplaceAll(good, ".", ".."),
	}
	for _, s := range a.subjects {
		all = append(all, s.handle)
	}
	return all
}
