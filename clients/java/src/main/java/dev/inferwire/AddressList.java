package dev.inferwire;

import io.grpc.Attributes;
import io.grpc.EquivalentAddressGroup;
import io.grpc.NameResolver;
import io.grpc.NameResolverProvider;
import io.grpc.NameResolverRegistry;
import io.grpc.StatusOr;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.UnknownHostException;
import java.util.ArrayList;
import java.util.List;

/** Resolves targets such as "ipv4:10.0.0.1:50051,10.0.0.2:50051", which gRPC knows in other languages. */
final class AddressList extends NameResolver {
  private final List<EquivalentAddressGroup> groups = new ArrayList<>();
  private final String first;

  private AddressList(String addresses) {
    String[] each = addresses.split(",", -1);
    first = each[0];
    for (String address : each) {
      // Each server is called by its own name, also where TLS checks that.
      Attributes name =
          Attributes.newBuilder().set(EquivalentAddressGroup.ATTR_AUTHORITY_OVERRIDE, address).build();
      groups.add(new EquivalentAddressGroup(socketAddress(address), name));
    }
  }

  /** Makes gRPC know the two schemes in this process. A program that has its own for them keeps those. */
  static void register() {
    NameResolverRegistry.getDefaultRegistry().register(new Provider("ipv4"));
    NameResolverRegistry.getDefaultRegistry().register(new Provider("ipv6"));
  }

  @Override
  public String getServiceAuthority() {
    return first;
  }

  @Override
  public void start(Listener2 listener) {
    listener.onResult(ResolutionResult.newBuilder().setAddressesOrError(StatusOr.fromValue(groups)).build());
  }

  @Override
  public void shutdown() {}

  private static InetSocketAddress socketAddress(String address) {
    int colon = address.lastIndexOf(':');
    String host = colon < 0 ? "" : address.substring(0, colon);
    String bare = host.startsWith("[") && host.endsWith("]") ? host.substring(1, host.length() - 1) : host;
    if (Endpoint.IP.matcher(bare).matches()) {
      try {
        // The pattern is that of an address: nothing is looked up.
        return new InetSocketAddress(
            InetAddress.getByName(bare), Integer.parseInt(address.substring(colon + 1)));
      } catch (UnknownHostException | IllegalArgumentException notAnAddress) {
        // Told below.
      }
    }
    throw new IllegalArgumentException("'" + address + "' is not an address and a port");
  }

  private static final class Provider extends NameResolverProvider {
    private final String scheme;

    Provider(String scheme) {
      this.scheme = scheme;
    }

    @Override
    public String getDefaultScheme() {
      return scheme;
    }

    @Override
    public NameResolver newNameResolver(URI target, NameResolver.Args arguments) {
      return scheme.equals(target.getScheme())
          ? new AddressList(target.getSchemeSpecificPart().replaceFirst("^/+", ""))
          : null;
    }

    @Override
    protected boolean isAvailable() {
      return true;
    }

    /** Below the usual 5. */
    @Override
    protected int priority() {
      return 4;
    }
  }
}
