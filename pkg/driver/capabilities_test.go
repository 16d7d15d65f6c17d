package driver

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// csiMessage makes an empty message of the spec by its full name.
func csiMessage(t *testing.T, name string) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		t.Fatal(err)
	}
	return mt.New().Interface()
}

// verdicts are a table's rows by the spec's names.
func verdicts[T ~int32](table map[T]string, names map[int32]string) map[string]string {
	out := make(map[string]string)
	for t, why := range table {
		out[names[int32(t)]] = why
	}
	return out
}

// Every capability that the spec knows is decided on, and docs/csi.md says the same.
func TestCapabilitiesAgainstTheSpec(t *testing.T) {
	doc, err := os.ReadFile("../../docs/csi.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what  string
		names map[int32]string
		table map[string]string
	}{
		{"Plugin", csi.PluginCapability_Service_Type_name, verdicts(pluginServices, csi.PluginCapability_Service_Type_name)},
		{"Controller", csi.ControllerServiceCapability_RPC_Type_name, verdicts(controllerRPCs, csi.ControllerServiceCapability_RPC_Type_name)},
		{"Node", csi.NodeServiceCapability_RPC_Type_name, verdicts(nodeRPCs, csi.NodeServiceCapability_RPC_Type_name)},
	} {
		for number, name := range tt.names {
			why, ok := tt.table[name]
			if number == 0 {
				continue
			}
			if !ok {
				t.Errorf("%s capability %s of the spec is not decided on", tt.what, name)
			}
			row := fmt.Sprintf("| %s | `%s` | yes |", tt.what, name)
			if why != "" {
				row = fmt.Sprintf("| %s | `%s` | no: %s |", tt.what, name, why)
			}
			if !strings.Contains(string(doc), row+"\n") {
				t.Errorf("docs/csi.md has no row %q", row)
			}
		}
		if len(tt.table) != len(tt.names)-1 {
			t.Errorf("%s: %d rows for %d capabilities", tt.what, len(tt.table), len(tt.names)-1)
		}
	}
}

// Every access mode that the spec knows is in docs/csi.md as it is in the code.
func TestAccessModesAgainstTheSpec(t *testing.T) {
	doc, err := os.ReadFile("../../docs/csi.md")
	if err != nil {
		t.Fatal(err)
	}
	for number, name := range csi.VolumeCapability_AccessMode_Mode_name {
		_, offered := offeredModes[csi.VolumeCapability_AccessMode_Mode(number)]
		row := regexp.MustCompile(fmt.Sprintf("(?m)^\\| `%s` \\| (yes|no)", name)).FindStringSubmatch(string(doc))
		if number == 0 {
			continue
		}
		if row == nil || (row[1] == "yes") != offered {
			t.Errorf("docs/csi.md: %s is offered: %v; the row says %q", name, offered, row)
		}
	}
}

// What is offered is implemented, and what is implemented is offered: the methods of
// the services answer Unimplemented exactly when nothing offers them.
func TestOfferedIsImplemented(t *testing.T) {
	w := newWorld(t)
	offers := map[string]bool{"ControllerModifyVolume": false, "ControllerGetVolumeHealth": false, "ControllerListVolumeHealth": false,
		"NodeGetVolumeHealth": false, "NodeGetStorageHealth": false}
	services := csi.File_csi_proto.Services()
	for i := range services.Len() {
		service := services.Get(i)
		if name := service.Name(); name == "GroupController" || name == "SnapshotMetadata" {
			continue
		}
		methods := service.Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			resp := csiMessage(t, string(m.Output().FullName()))
			err := w.conn.Invoke(context.Background(), fmt.Sprintf("/%s/%s", service.FullName(), m.Name()), csiMessage(t, string(m.Input().FullName())), resp)
			implemented := err == nil || !strings.Contains(err.Error(), "Unimplemented")
			want := true
			if v, ok := offers[string(m.Name())]; ok {
				want = v
			}
			if implemented != want {
				t.Errorf("%s: implemented %v, want %v: %v", m.Name(), implemented, want, err)
			}
		}
	}
}
