package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// kubernetes is the version whose schemas objects are held against.
const kubernetes = "k8s.io/kubernetes@v1.37.2"

// facts are what manifests are compared with.
type facts struct {
	driver     string              // the driver's name
	parameters map[string][]string // of a StorageClass: the values that the driver takes
	grace      time.Duration       // what granary serve may take to stop
	serveFlags map[string]bool
	sidecars   map[string]*sidecar // by image name
	schemas    *schemas
}

// sidecar is what the sources of a sidecar say.
type sidecar struct {
	flags  map[string]bool
	gates  map[string]bool
	rights map[string]bool // see rights
	source string          // of its commands
}

// sidecarModules are the modules behind the images.
var sidecarModules = map[string]string{
	"csi-attacher":    "github.com/kubernetes-csi/external-attacher/v4",
	"csi-provisioner": "github.com/kubernetes-csi/external-provisioner/v6",
	"csi-resizer":     "github.com/kubernetes-csi/external-resizer/v2",
	"csi-snapshotter": "github.com/kubernetes-csi/external-snapshotter/v8",
}

var (
	factsOnce sync.Once
	factsRead *facts
	factsErr  error
)

// readFacts reads everything once. It never changes.
func readFacts(t *testing.T) *facts {
	t.Helper()
	factsOnce.Do(func() { factsRead, factsErr = gather() })
	if factsErr != nil {
		t.Fatal(factsErr)
	}
	return factsRead
}

func gather() (f *facts, err error) {
	f = &facts{sidecars: map[string]*sidecar{}}
	server, err := os.ReadFile("../../pkg/driver/server.go")
	if err != nil {
		return nil, err
	}
	name := regexp.MustCompile(`(?m)^const Name = "([^"]+)"`).FindSubmatch(server)
	if name == nil {
		return nil, fmt.Errorf("pkg/driver/server.go: no constant Name")
	}
	f.driver = string(name[1])
	if f.parameters, err = readParameters(); err != nil {
		return nil, err
	}
	if f.grace, err = readGrace(); err != nil {
		return nil, err
	}
	if f.serveFlags, err = readServeFlags(); err != nil {
		return nil, err
	}
	images, err := sidecarImages()
	if err != nil {
		return nil, err
	}
	for name, version := range images {
		if f.sidecars[name], err = readSidecar(name, version); err != nil {
			return nil, err
		}
	}
	f.schemas, err = newSchemas()
	return f, err
}

// readParameters finds a StorageClass's parameters and their values in the driver.
func readParameters() (map[string][]string, error) {
	text, err := os.ReadFile("../../pkg/driver/parameters.go")
	if err != nil {
		return nil, err
	}
	quoted := func(list string) []string {
		var out []string
		for _, m := range regexp.MustCompile(`"([^"]*)"`).FindAllStringSubmatch(list, -1) {
			out = append(out, m[1])
		}
		return out
	}
	fsTypes := regexp.MustCompile(`fsTypes = \[\]string\{([^}]*)\}`).FindSubmatch(text)
	out := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^\s+(param\w+)\s+= "([^"]+)"`).FindAllSubmatch(text, -1) {
		block := regexp.MustCompile(`(?s)case key == ` + string(m[1]) + `:(.*?)\n\t\t(?:case|default)`).FindSubmatch(text)
		if block == nil {
			return nil, fmt.Errorf("pkg/driver/parameters.go: nothing parses %s", m[1])
		}
		values := regexp.MustCompile(`oneOf\(value, ([^)]*)\)`).FindSubmatch(block[1])
		if values == nil && strings.Contains(string(block[1]), "checkFSType") {
			values = fsTypes
		}
		if values == nil {
			return nil, fmt.Errorf("pkg/driver/parameters.go: no values of %s found: has parsing changed?", m[2])
		}
		out[string(m[2])] = quoted(string(values[1]))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("pkg/driver/parameters.go: no parameters found")
	}
	return out, nil
}

// readGrace adds up the time limits in the daemon's stop.
func readGrace() (time.Duration, error) {
	text, err := os.ReadFile("../../cmd/granary/serve.go")
	if err != nil {
		return 0, err
	}
	units := map[string]time.Duration{"Second": time.Second, "Minute": time.Minute}
	var sum time.Duration
	for _, m := range regexp.MustCompile(`(?m)^\s+(tellingEnd|callsEnd|volumesEnd)\s+= (\d+) \* time\.(Second|Minute)`).FindAllSubmatch(text, -1) {
		n, err := strconv.Atoi(string(m[2]))
		if err != nil {
			return 0, err
		}
		uses := strings.Count(string(text), "WithTimeout(context.Background(), "+string(m[1])+")")
		sum += time.Duration(n*uses) * units[string(m[3])]
	}
	if sum == 0 {
		return 0, fmt.Errorf("cmd/granary/serve.go: the time limits of stop not found")
	}
	return sum, nil
}

// readServeFlags asks the binary of this tree.
func readServeFlags() (map[string]bool, error) {
	dir, err := os.MkdirTemp("", "granary-deploy-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "granary")
	cmd := exec.Command("go", "build", "-tags", "grpcnotrace", "-buildvcs=false", "-o", binary, "./cmd/granary")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build granary: %w: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	help, err := exec.CommandContext(ctx, binary, "serve", "--help").Output()
	if err != nil {
		return nil, fmt.Errorf("granary serve --help: %w", err)
	}
	flags := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\s+(?:-\w, )?--([a-z0-9-]+)`).FindAllSubmatch(help, -1) {
		flags[string(m[1])] = true
	}
	if !flags["data-dir"] {
		return nil, fmt.Errorf("granary serve --help: not understood: %s", help)
	}
	return flags, nil
}

// sidecarImages finds the sidecars' images in the manifests: name -> version.
func sidecarImages() (map[string]string, error) {
	out := map[string]string{}
	err := filepath.WalkDir(manifests, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`registry\.k8s\.io/sig-storage/([a-z-]+):(v[0-9.]+)`).FindAllSubmatch(text, -1) {
			name, version := string(m[1]), string(m[2])
			if other := out[name]; other != "" && other != version {
				return fmt.Errorf("%s: %s is %s here and %s elsewhere", path, name, version, other)
			}
			out[name] = version
		}
		return err
	})
	return out, err
}

// readSidecar reads a sidecar's sources.
func readSidecar(name, version string) (*sidecar, error) {
	module, ok := sidecarModules[name]
	if !ok {
		return nil, fmt.Errorf("image %s: its module is not in this test's table", name)
	}
	dir, err := download(module + "@" + version)
	if err != nil {
		return nil, err
	}
	s := &sidecar{rights: map[string]bool{}, flags: map[string]bool{}, gates: map[string]bool{}}
	if s.source, err = sources(filepath.Join(dir, "cmd", name)); err != nil {
		return nil, err
	}
	// The flags that all sidecars share are in a library.
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return nil, err
	}
	lib := regexp.MustCompile(`github\.com/kubernetes-csi/csi-lib-utils (v\S+)`).FindSubmatch(mod)
	if lib == nil {
		return nil, fmt.Errorf("%s: does not use csi-lib-utils", name)
	}
	libDir, err := download("github.com/kubernetes-csi/csi-lib-utils@" + string(lib[1]))
	if err != nil {
		return nil, err
	}
	common, err := sources(filepath.Join(libDir, "standardflags"))
	if err != nil {
		return nil, err
	}
	for _, m := range regexp.MustCompile(`\bflags?\.\w+\([^"\n]*"([a-z0-9-]+)"`).FindAllStringSubmatch(s.source+common, -1) {
		s.flags[m[1]] = true
	}
	gates, err := sources(filepath.Join(dir, "pkg", "features"))
	if err != nil {
		return nil, err
	}
	for _, m := range regexp.MustCompile(`featuregate\.Feature = "(\w+)"`).FindAllStringSubmatch(gates, -1) {
		s.gates[m[1]] = true
	}
	rbac := filepath.Join(dir, "deploy", "kubernetes", "rbac.yaml")
	if _, err := os.Stat(rbac); err != nil {
		rbac = filepath.Join(dir, "deploy", "kubernetes", name, "rbac-"+name+".yaml")
	}
	text, err := os.ReadFile(rbac)
	if err != nil {
		return nil, err
	}
	for doc := range strings.SplitSeq("\n"+string(text), "\n---") {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(doc), &role); err != nil {
			return nil, fmt.Errorf("%s: %w", rbac, err)
		}
		if strings.HasSuffix(role.Kind, "Role") {
			maps.Copy(s.rights, rights(role.Rules))
		}
	}
	if len(s.flags) == 0 || len(s.gates) == 0 || len(s.rights) == 0 {
		return nil, fmt.Errorf("%s: %d flags, %d feature gates, %d rights found: have its sources changed?", name, len(s.flags), len(s.gates), len(s.rights))
	}
	return s, nil
}

// sources joins a folder's Go files, without tests.
func sources(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", err
	}
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
	if len(files) == 0 {
		return "", fmt.Errorf("no Go files in %s", dir)
	}
	var all strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		all.Write(text)
	}
	return all.String(), nil
}

// download gives the folder of a module that this one does not depend on. The go
// command checks it against the checksum database.
func download(module string) (dir string, err error) {
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	out, err := cmd.Output()
	var result struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &result); jsonErr == nil && result.Error != "" {
		return "", fmt.Errorf("go mod download %s: %s", module, result.Error)
	}
	if err != nil {
		return "", fmt.Errorf("go mod download %s: %w", module, err)
	}
	return result.Dir, nil
}
