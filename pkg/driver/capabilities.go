package driver

import (
	"context"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// What the driver offers, and why it does not offer the rest. A test compares these
// tables with the spec's lists and with docs/csi.md: what a new version of the spec
// adds has to be decided on.

// pluginServices are the services that GetPluginCapabilities names.
var pluginServices = map[csi.PluginCapability_Service_Type]string{
	csi.PluginCapability_Service_CONTROLLER_SERVICE:                 "",
	csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS:   "",
	csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE:           "no group snapshots yet",
	csi.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE:          "no changed block tracking yet",
	csi.PluginCapability_Service_SNAPSHOT_ACCESSIBILITY_CONSTRAINTS: "a snapshot is where its volume is; alpha",
}

// controllerRPCs are what ControllerGetCapabilities names: "" is offered, anything
// else says why not.
var controllerRPCs = map[csi.ControllerServiceCapability_RPC_Type]string{
	csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME:         "",
	csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME:     "",
	csi.ControllerServiceCapability_RPC_LIST_VOLUMES:                 "",
	csi.ControllerServiceCapability_RPC_GET_CAPACITY:                 "",
	csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT:       "",
	csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS:               "",
	csi.ControllerServiceCapability_RPC_CLONE_VOLUME:                 "",
	csi.ControllerServiceCapability_RPC_PUBLISH_READONLY:             "",
	csi.ControllerServiceCapability_RPC_EXPAND_VOLUME:                "",
	csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES: "",
	csi.ControllerServiceCapability_RPC_GET_VOLUME:                   "",
	csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER:     "",
	csi.ControllerServiceCapability_RPC_GET_SNAPSHOT:                 "",
	csi.ControllerServiceCapability_RPC_MODIFY_VOLUME:                "no mutable parameters yet",
	csi.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH:            "no health monitoring yet; alpha",
	csi.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH:           "no health monitoring yet; alpha",
}

// nodeRPCs are what NodeGetCapabilities names.
var nodeRPCs = map[csi.NodeServiceCapability_RPC_Type]string{
	csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME:     "",
	csi.NodeServiceCapability_RPC_GET_VOLUME_STATS:         "",
	csi.NodeServiceCapability_RPC_EXPAND_VOLUME:            "",
	csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER: "",
	csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP:       "block filesystems have no gid option; kubelet's fsGroup does it",
	csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH:        "no health monitoring yet; alpha",
	csi.NodeServiceCapability_RPC_GET_STORAGE_HEALTH:       "no health monitoring yet; alpha",
}

// offered lists what a table offers, in the order of the spec's numbers.
func offered[T ~int32](table map[T]string) []T {
	var all []T
	for t, why := range table {
		if why == "" {
			all = append(all, t)
		}
	}
	slices.Sort(all)
	return all
}

// GetPluginCapabilities implements csi.IdentityServer.
func (d *Driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	resp := &csi.GetPluginCapabilitiesResponse{}
	for _, t := range offered(pluginServices) {
		resp.Capabilities = append(resp.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
			Service: &csi.PluginCapability_Service{Type: t},
		}})
	}
	resp.Capabilities = append(resp.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_VolumeExpansion_{
		VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE},
	}})
	return resp, nil
}

// ControllerGetCapabilities implements csi.ControllerServer.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range offered(controllerRPCs) {
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: t},
		}})
	}
	return resp, nil
}

// NodeGetCapabilities implements csi.NodeServer.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range offered(nodeRPCs) {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{
			Rpc: &csi.NodeServiceCapability_RPC{Type: t},
		}})
	}
	return resp, nil
}
