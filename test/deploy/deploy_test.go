package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/yaml"
)

// builds are what users apply.
func builds(t *testing.T) map[string][]rawObject {
	t.Helper()
	out := map[string][]rawObject{"base": build(t, "base"), "all": build(t, "")}
	out["all with examples"] = append(slices.Clone(out["all"]), build(t, "examples")...)
	return out
}

func TestManifests(t *testing.T) {
	f := readFacts(t)
	for name, raws := range builds(t) {
		s, err := newSet(raws, f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, c := range checks {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				for _, problem := range c.run(s) {
					t.Error(problem)
				}
			})
		}
	}
}

// TestBaseHasNoSnapshots: a cluster without their kinds refuses the whole set else.
func TestBaseHasNoSnapshots(t *testing.T) {
	s, err := newSet(build(t, "base"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range s.objects {
		if v, _ := o.raw["apiVersion"].(string); strings.HasPrefix(v, "snapshot.storage.k8s.io/") {
			t.Errorf("%s", o)
		}
	}
	if s.has("VolumeSnapshotClass", granary) || s.has("ClusterRole", "granary-snapshotter") {
		t.Error("parts of the component are in the base")
	}
}

// TestFiles: every file decodes strictly as it stands, which also finds fields that are
// there twice (a build keeps one of them), and belongs to a kustomization.
func TestFiles(t *testing.T) {
	var files []string
	named := map[string]bool{}
	err := filepath.WalkDir(manifests, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if d.Name() != "kustomization.yaml" {
			files = append(files, path)
			for _, doc := range documents(string(text)) {
				if _, err := decode([]byte(doc)); err != nil {
					t.Errorf("%s: %v", path, err)
				}
			}
			return nil
		}
		var k types.Kustomization
		if err := yaml.UnmarshalStrict(text, &k); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		for _, r := range k.Resources {
			named[filepath.Join(filepath.Dir(path), r)] = true
		}
		for _, p := range k.Patches {
			named[filepath.Join(filepath.Dir(path), p.Path)] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !named[file] {
			t.Errorf("%s: in no kustomization", file)
		}
	}
	if len(files) < 10 {
		t.Errorf("only %d files found", len(files))
	}
}

func documents(text string) (out []string) {
	for doc := range strings.SplitSeq("\n"+text, "\n---\n") {
		if strings.TrimSpace(doc) != "" {
			out = append(out, doc)
		}
	}
	return out
}

func TestStrictDecoding(t *testing.T) {
	for text, want := range map[string]string{
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n":                                                   "",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, name: b}\n":                                          `key "name" already set`,
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namme: b}\n":                                         `unknown field "metadata.namme"`,
		"apiVersion: v1\nkind: Namespase\nmetadata: {name: a}\n":                                                   `no kind "Namespase"`,
		"apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: a}\nspec: {attachRequired: certainly}\n": "cannot unmarshal string",
	} {
		_, err := decode([]byte(text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
