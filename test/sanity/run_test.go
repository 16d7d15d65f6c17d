package sanity

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	csisanity "github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
)

// runSpecs is the process that runs the specs once, as the plan in the file says. It
// returns the process's exit code.
func runSpecs(file string) int {
	flag.Parse() // Ginkgo's flags have to be parsed, though there are none
	var p plan
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	config := p.config()
	specs := csisanity.GinkgoTest(&config)
	ginkgo.ReportAfterSuite("report", func(r ginkgo.Report) {
		if err := writeReport(p.Report, r); err != nil {
			ginkgo.Fail(err.Error())
		}
	})
	gomega.RegisterFailHandler(ginkgo.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	suite.RandomSeed, suite.RandomizeAllSpecs = p.Order, true
	reporter.NoColor = true
	var f failure
	ginkgo.RunSpecs(&f, "csi-sanity", suite, reporter)
	specs.Finalize()
	if f.failed {
		return 1
	}
	return 0
}

// failure is what RunSpecs needs of a testing.T.
type failure struct{ failed bool }

func (f *failure) Fail() { f.failed = true }

func (p plan) config() csisanity.TestConfig {
	c := csisanity.NewTestConfig()
	c.Address = "unix://" + p.Socket
	c.StagingPath = filepath.Join(p.Dir, "staging")
	c.TargetPath = filepath.Join(p.Dir, "target")
	c.SecretsFile = p.Secrets
	c.TestVolumeSize = p.Size
	c.TestVolumeExpandSize = 2 * p.Size
	c.TestVolumeAccessType = "mount"
	c.TestVolumeParameters = map[string]string{
		"compression":                 "zstd",
		"csi.storage.k8s.io/pvc/name": "claim",
		"csi.storage.k8s.io/fstype":   p.Kind,
		"csi.storage.k8s.io/pv/name":  "volume",
	}
	c.TestSnapshotParameters = map[string]string{"csi.storage.k8s.io/volumesnapshot/name": "snapshot"}
	if p.Kind == block {
		c.TestVolumeAccessType = "block"
		delete(c.TestVolumeParameters, "csi.storage.k8s.io/fstype")
		c.TestVolumeParameters["blockSize"] = "4096"
	}
	c.TestNodeVolumeAttachLimit = true
	c.IdempotentCount = 10
	if p.Handle != "" {
		c.IDGen = newHandles(p.Handle)
	}
	return c
}

// writeReport writes how each spec went.
func writeReport(file string, r ginkgo.Report) error {
	var results []result
	for _, s := range r.SpecReports {
		if s.LeafNodeType != types.NodeTypeIt {
			continue
		}
		message := s.Failure.Message
		if s.Failed() {
			message += " at " + s.Failure.Location.String()
		}
		results = append(results, result{Spec: s.FullText(), State: s.State.String(), Message: message, Seconds: s.RunTime.Seconds()})
	}
	b, err := json.Marshal(results)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}
