package sanity

// Why specs are skipped: each is a capability that the driver does not offer.
const (
	noModify       = "MODIFY_VOLUME is not offered: no parameter of a volume can be changed later"
	noHealth       = "GET_VOLUME_HEALTH, LIST_VOLUME_HEALTH and GET_STORAGE_HEALTH are not offered"
	noGroups       = "GROUP_CONTROLLER_SERVICE is not offered"
	noSnapTopology = "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS is not offered: a snapshot is where its volume is"
	disabled       = "csi-sanity has it disabled"
)

// skips lists the specs that do not run on this driver. One that is skipped and is not
// here is a capability lost.
var skips = map[string]string{
	"Controller Service [Controller Server] CreateVolume should create volume with a volume attribute class":                                                      noModify,
	"Controller Service [Controller Server] CreateVolume should not create volume with an invalid volume attribute class":                                         noModify,
	"ModifyVolume [Controller Server] should fail if no volume id is given":                                                                                       noModify,
	"ModifyVolume [Controller Server] should fail if volume does not exist":                                                                                       noModify,
	"ModifyVolume [Controller Server] should fail if specified mutable parameters are not supported by the volume":                                                noModify,
	"ModifyVolume [Controller Server] should modify a volume created without a volume attribute class":                                                            noModify,
	"ModifyVolume [Controller Server] should modify a volume created with a volume attribute class":                                                               noModify,
	"ModifyVolume [Controller Server] should fail to modify a volume created with a volume attribute class if new mutable parameters are not supported by volume": noModify,

	"ControllerGetVolumeHealth [Controller Server] should fail when no volume id is provided": noHealth,
	"ControllerGetVolumeHealth [Controller Server] should return health for a valid volume":   noHealth,
	"ControllerListVolumeHealth [Controller Server] should return appropriate response":       noHealth,
	"Node Service NodeGetVolumeHealth should fail when no volume id is provided":              noHealth,
	"Node Service NodeGetVolumeHealth should return health for a valid volume":                noHealth,
	"Node Service NodeGetStorageHealth should return appropriate response":                    noHealth,

	"GroupController Service [GroupController Server] GroupControllerGetCapabilities should return appropriate capabilities":                    noGroups,
	"GroupController Service [GroupController VolumeGroupSnapshots] CreateVolumeGroupSnapshot should fail when no name is provided":             noGroups,
	"GroupController Service [GroupController VolumeGroupSnapshots] GetVolumeGroupSnapshot should fail when no volume id is provided":           noGroups,
	"GroupController Service [GroupController VolumeGroupSnapshots] GetVolumeGroupSnapshot should fail when an invalid volume id is used":       noGroups,
	"GroupController Service [GroupController VolumeGroupSnapshots] DeleteVolumeGroupSnapshot should fail when no volume id is provided":        noGroups,
	"GroupController Service [GroupController VolumeGroupSnapshots] DeleteVolumeGroupSnapshot should succeed when an invalid volume id is used": noGroups,

	"CreateSnapshot [Controller Server] should succeed when creating a snapshot with accessibility requirements": noSnapTopology,

	"Controller Service [Controller Server] ListVolumes pagination should detect volumes added between pages and accept tokens when the last volume from a page is deleted": disabled,
}
