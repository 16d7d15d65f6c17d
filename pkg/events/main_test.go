package events

import (
	"os"
	"testing"

	"github.com/k8ns/granary/pkg/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }
