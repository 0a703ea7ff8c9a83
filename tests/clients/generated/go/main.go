// Drives a VMM by the client that openapi-generator makes of api/openapi.yaml, through its UNIX socket:
// configures a microVM of the files given, starts, pauses and resumes it, and says what it was told.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"

	"mayfly"
)

func newClient(socket string) *mayfly.APIClient {
	configuration := mayfly.NewConfiguration()
	configuration.HTTPClient = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
	return mayfly.NewAPIClient(configuration)
}

func check(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		if refused, ok := err.(*mayfly.GenericOpenAPIError); ok {
			fmt.Fprintf(os.Stderr, "%s\n", refused.Body())
		}
		os.Exit(1)
	}
}

func configure(ctx context.Context, client *mayfly.APIClient, kernel, disk string) {
	machine := mayfly.NewMachineConfig(2, 64)
	machine.SetHugePages("None")
	_, err := client.ConfigurationAPI.PutMachineConfig(ctx).MachineConfig(*machine).Execute()
	check("PUT /machine-config", err)
	source := mayfly.NewBootSource(kernel)
	source.SetBootArgsNil()
	_, err = client.ConfigurationAPI.PutBootSource(ctx).BootSource(*source).Execute()
	check("PUT /boot-source", err)
	bucket := mayfly.NewTokenBucket(1<<40, 1000)
	limiter := mayfly.NewRateLimiter()
	limiter.SetBandwidth(*bucket)
	limiter.SetOpsNil()
	drive := mayfly.NewDrive("rootfs", true)
	drive.SetPathOnHost(disk)
	drive.SetIoEngine(mayfly.SYNC)
	drive.SetRateLimiter(*limiter)
	_, err = client.ConfigurationAPI.PutDrive(ctx, "rootfs").Drive(*drive).Execute()
	check("PUT /drives/rootfs", err)
}

// The text of a fault, of a request that is refused.
func fault(ctx context.Context, client *mayfly.APIClient) string {
	_, err := client.ConfigurationAPI.PutMachineConfig(ctx).
		MachineConfig(*mayfly.NewMachineConfig(33, 64)).Execute()
	refused, ok := err.(*mayfly.GenericOpenAPIError)
	if !ok {
		check("a fault", fmt.Errorf("not refused: %v", err))
	}
	return refused.Model().(mayfly.Fault).FaultMessage
}

func main() {
	ctx, client := context.Background(), newClient(os.Args[1])
	said := map[string]any{}
	instance, _, err := client.InstanceAPI.GetInstance(ctx).Execute()
	check("GET /", err)
	said["before"] = instance.GetState()
	configure(ctx, client, os.Args[2], os.Args[3])
	said["fault"] = fault(ctx, client)
	shown, _, err := client.ConfigurationAPI.GetVmConfig(ctx).Execute()
	check("GET /vm/config", err)
	said["config"] = shown
	_, err = client.InstanceAPI.PutMmds(ctx).Body(map[string]any{"a": []any{1, "b", nil}}).Execute()
	check("PUT /mmds", err)
	said["mmds"], _, err = client.InstanceAPI.GetMmds(ctx).Execute()
	check("GET /mmds", err)
	for _, state := range []string{"", "Paused", "Resumed"} {
		if state == "" {
			_, err = client.InstanceAPI.PutAction(ctx).Action(*mayfly.NewAction("InstanceStart")).Execute()
		} else {
			_, err = client.InstanceAPI.PatchVm(ctx).VmState(*mayfly.NewVmState(state)).Execute()
		}
		check("state "+state, err)
		instance, _, err = client.InstanceAPI.GetInstance(ctx).Execute()
		check("GET /", err)
		said["after"+state] = instance.GetState()
	}
	timeline, _, err := client.ObservationAPI.GetBootTimeline(ctx).Execute()
	check("GET /boot-timeline", err)
	said["timeline"] = timeline
	metrics, _, err := client.ObservationAPI.GetMetrics(ctx).Execute()
	check("GET /metrics", err)
	said["metrics"] = metrics
	check("the answer", json.NewEncoder(os.Stdout).Encode(said))
}
